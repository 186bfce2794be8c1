"""The adapters of a device: nothing gets in, and nothing is used, that was not verified.

::

    state.json               which adapter is in use, the one before it, and what is remembered
    versions/DIGEST/         manifest.json, signature.json and the files that the manifest names
    incoming/DIGEST          downloads that may be resumed; nothing reads them but :meth:`install`

Signature, base model, audit verdict, order and sizes are checked before a file is fetched; hashes
and the weights' header before the adapter is put in its place; and all of it again whenever it is
loaded. A new adapter takes the place of the old one by one rename, so that a crash leaves one of
them in use, and the old one is kept to go back to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.adapterfiles import Source, VerifiedAdapter, load_files, read_bounded
from client.adapterrules import AdapterPolicy, Memory, Refusal
from client.adapterversions import VersionFolder
from shared.canonical import sha256_hex
from shared.crypto import Signature
from shared.documents import SCHEMA, is_digest
from shared.errors import (
    AdapterCorrupt,
    AdapterError,
    AdapterUntrusted,
    FedSLMError,
    InvalidValue,
)
from shared.files import disk_errors
from shared.locks import exclusive
from shared.manifest import AdapterManifest, FileEntry, read_manifest
from shared.orders import Order, read_order
from shared.privatefiles import make_private_folder, replace_private

STATE = "state.json"
_LARGEST_STATE = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A version that may be fetched: everything that can be known without its files holds.

    Attributes:
        digest: of the manifest.
        manifest: what the server signed.
        order: the order that came with it.
        installed: whether it is in use already.
    """

    digest: str
    manifest: AdapterManifest
    order: Order | None
    installed: bool

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files to fetch, in the order of a download of the whole."""
        return self.manifest.files

    @property
    def size(self) -> int:
        """Bytes of a download of the whole."""
        return self.manifest.size


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledAdapter:
    """An adapter on this device: its digest, folder and manifest."""

    digest: str
    folder: Path
    manifest: AdapterManifest


class AdapterStore:
    """The adapters in a device's folder.

    Args:
        folder: made with mode 700 if missing.
        trusted_key: the only public key whose signature counts, 64 hexadecimal digits.
        base_digest: of the device's base model; None where it is not known yet, and then whoever
            loads an adapter compares it.
        policy: what the owner demands.

    Raises:
        InvalidValue: if a key or digest is malformed.
        FleetError: if others may look into the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trusted_key: str,
        base_digest: str | None,
        policy: AdapterPolicy | None = None,
    ) -> None:
        for name, value in (("trusted_key", trusted_key), ("base_digest", base_digest)):
            if not (value is None and name == "base_digest") and not is_digest(str(value)):
                msg = f"{name}: expected 64 lower-case hexadecimal digits."
                raise InvalidValue(msg, hint="Enroll again, or ask whoever runs the server.")
        make_private_folder(folder)
        self.folder = folder
        self._versions = VersionFolder(folder)
        self.trusted_key = trusted_key
        self.base_digest = base_digest
        self.policy = policy or AdapterPolicy()

    def examine(
        self,
        manifest: bytes,
        signature: Signature,
        *,
        order: bytes | None = None,
        order_signature: Signature | None = None,
        again: bool = False,
    ) -> Offer:
        """Decide about a version before any file of it is fetched.

        Args:
            manifest: canonical JSON, as the server signed it.
            signature: of the manifest.
            order: canonical JSON of the server's newest order, if it gives any.
            order_signature: of the order.
            again: whether the owner wants a version that they rolled back from.

        Returns:
            What to fetch.

        Raises:
            AdapterUntrusted: for a signature, base, verdict or order that is not what it must be.
            AdapterCorrupt: if manifest or order cannot be understood.
        """
        with self._locked(), self._remembering(sha256_hex(manifest)):
            return self._decide(manifest, signature, order, order_signature, again=again)

    def incoming(self, digest: str) -> Path:
        """Return where a download of a version or of one file goes; what is there is its beginning.

        Downloads are cleared away once a version is in use, and a version's own when it is refused.

        Raises:
            InvalidValue: for what is no digest.
        """
        return self._versions.incoming(digest)

    def install(
        self,
        manifest: bytes,
        signature: Signature,
        weights: Source | None = None,
        *,
        order: bytes | None = None,
        order_signature: Signature | None = None,
        again: bool = False,
    ) -> InstalledAdapter:
        """Verify a version and put it in use; the one before is kept.

        Args:
            manifest: as :meth:`examine`, which is done again.
            signature: of the manifest.
            weights: the files: one file with all of them in the manifest's order (what
                :meth:`incoming` names, by default), or each by name.
            order: as :meth:`examine`.
            order_signature: as :meth:`examine`.
            again: as :meth:`examine`.

        Returns:
            The version that is in use now.

        Raises:
            AdapterUntrusted: as :meth:`examine`.
            AdapterCorrupt: if a file is not the one that the manifest names, or no safe weights.
            AdapterIncompatible: if it is no plain LoRA.
            OutOfDisk: if no space is left. After any error, what was in use is still in use.
        """
        digest = sha256_hex(manifest)
        with self._locked(), self._remembering(digest):
            offer = self._decide(manifest, signature, order, order_signature, again=again)
            if not (offer.installed and self._holds(digest)):
                self._versions.place(offer.manifest, manifest, signature, weights)
            self._write(self.memory().taking(offer.manifest, offer.order))
            self._versions.prune(self.candidates())
            self._versions.forget_downloads()
        return InstalledAdapter(
            digest=digest, folder=self._versions.of(digest), manifest=offer.manifest
        )

    def current(self) -> InstalledAdapter | None:
        """Return the adapter in use, its manifest verified; None before the first.

        Raises:
            AdapterUntrusted: if its manifest is not what it must be.
            AdapterCorrupt: if a file is missing or damaged.
        """
        digest = self.memory().current
        if digest is None:
            return None
        manifest = self._manifest(digest)
        return InstalledAdapter(digest=digest, folder=self._versions.of(digest), manifest=manifest)

    def candidates(self) -> tuple[str, ...]:
        """Return the digests to try when an adapter is loaded: the one in use, then the one before.

        Raises:
            AdapterCorrupt: if the store's memory is damaged.
        """
        memory = self.memory()
        return tuple(d for d in (memory.current, memory.previous) if d is not None)

    def load(self, digest: str) -> VerifiedAdapter:
        """Verify an installed adapter again, and load it from the bytes that were verified.

        Raises:
            AdapterUntrusted: for a signature, base or verdict that is not what it must be.
            AdapterCorrupt: if a file is missing or damaged.
            AdapterIncompatible: if it is no plain LoRA.
        """
        return load_files(self._manifest(digest), self._versions.of(digest))

    def rollback(self) -> InstalledAdapter:
        """Go back to the adapter that was in use before; the owner's own decision.

        What was in use is not taken again unless it is asked for (``again=True``).

        Raises:
            AdapterUntrusted: if there is none, or it does not verify any more.
            AdapterCorrupt: if a file of it is damaged.
        """
        with self._locked():
            memory = self.memory().back()
            digest = str(memory.current)
            self.load(digest)
            self._write(memory)
            self._versions.prune(self.candidates())
        return InstalledAdapter(
            digest=digest, folder=self._versions.of(digest), manifest=self._manifest(digest)
        )

    def refusals(self) -> tuple[Refusal, ...]:
        """Return the last adapters that were refused, and why; oldest first."""
        return self.memory().refusals

    def memory(self) -> Memory:
        """Return what the store remembers.

        Raises:
            AdapterCorrupt: if ``state.json`` is damaged.
        """
        if not (self.folder / STATE).exists():
            return Memory()
        data = read_bounded(self.folder / STATE, _LARGEST_STATE)
        try:
            return Memory.from_dict(json.loads(data.decode("utf-8")))
        except (InvalidValue, ValueError, RecursionError) as error:
            msg = f"{STATE} of the device's adapters is damaged."
            hint = "Without it old adapters cannot be told from new: remove the adapters folder."
            raise AdapterCorrupt(msg, hint=hint) from error

    def _decide(
        self,
        manifest: bytes,
        signature: Signature,
        order: bytes | None,
        order_signature: Signature | None,
        *,
        again: bool,
    ) -> Offer:
        """Check everything that needs no file."""
        found = read_manifest(manifest, signature, trusted=self.trusted_key)
        wanted = None
        if order is not None:
            if order_signature is None:
                msg = f"adapter {found.digest[:12]}: the order that came with it is not signed."
                raise AdapterUntrusted(msg, hint="Ask the server for its newest order.")
            wanted = read_order(order, order_signature, trusted=self.trusted_key)
        self.policy.check(found, base_digest=self.base_digest)
        memory = self.memory()
        memory.check(found, wanted, again=again)
        return Offer(
            digest=found.digest,
            manifest=found,
            order=wanted,
            installed=memory.current == found.digest,
        )

    def _manifest(self, digest: str) -> AdapterManifest:
        """Verify the manifest of an installed adapter against key, base and policy."""
        data, signature = self._versions.signed(digest)
        manifest = read_manifest(data, signature, trusted=self.trusted_key)
        if manifest.digest != digest:
            msg = f"adapter {digest[:12]}: its folder holds adapter {manifest.digest[:12]}."
            raise AdapterCorrupt(msg, hint="Fetch it again.")
        self.policy.check(manifest, base_digest=self.base_digest)
        return manifest

    def _holds(self, digest: str) -> bool:
        """Tell whether an installed adapter is whole."""
        try:
            self.load(digest)
        except AdapterError:
            return False
        return True

    def _write(self, memory: Memory) -> None:
        """Remember something durably."""
        value: dict[str, Any] = {"schema": SCHEMA, **asdict(memory)}
        text = json.dumps(value, indent=2, sort_keys=True) + "\n"
        replace_private(self.folder / STATE, text.encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time change the store."""
        path = self.folder / ".lock"
        with ExitStack() as held:
            with disk_errors(path):
                held.enter_context(exclusive(path))
            yield

    @contextmanager
    def _remembering(self, digest: str) -> Iterator[None]:
        """Write down what was refused and why, as far as the disk allows."""
        try:
            yield
        except AdapterError as error:
            with suppress(FedSLMError):
                self._write(self.memory().refusing(digest, error))
            raise
