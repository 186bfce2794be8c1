"""The adapter registry: versions by digest, which one is in use, and all of it durable.

::

    registry.json            says that this folder is a registry
    blobs/ab/abcdef...       files of adapters by SHA-256 (".sealed" if encrypted)
    versions/DIGEST.json     a signed manifest; a version exists from the moment this file does
    history/00000001.json    signed orders: promotions and rollbacks

Every file appears whole or not at all, in an order that makes a crash at any point harmless: blobs,
then the manifest, then the order that names it. Readers need no lock; whoever changes something
holds ``.lock``, so that several processes may work in one folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.registry.blobs import BlobStore
from server.registry.draft import Draft, read_draft
from server.registry.history import History, SignedOrder, read_json, stack_of, to_json
from server.registry.manifests import Manifests
from server.registry.versions import AdapterVersion, content, require_usable, states_of, version
from shared.crypto import SigningKey
from shared.documents import utc_now
from shared.errors import (
    AdapterCorrupt,
    AdapterError,
    FleetError,
    InvalidValue,
)
from shared.files import disk_errors
from shared.locks import exclusive
from shared.manifest import AdapterManifest
from shared.privatefiles import make_private_folder, replace_private
from shared.sealing import Sealer

MARK = "registry.json"
SCHEMA = 1
LARGEST_READ = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a garbage collection removed."""

    blobs: int
    strangers: int
    bytes: int


class AdapterRegistry:
    """A registry in a folder.

    Args:
        root: made if missing and a signer is given.
        signer: signs versions and orders; without it the registry can only be read.
        sealer: seals new blobs and opens sealed ones.
        trusted: the public key that signed the registry; the signer's by default.

    Raises:
        FleetError: if the folder holds no registry and none can be made, or one of another schema.
        InvalidValue: without a signer and a trusted key.
    """

    def __init__(
        self,
        root: Path,
        *,
        signer: SigningKey | None = None,
        sealer: Sealer | None = None,
        trusted: str | None = None,
    ) -> None:
        key = trusted or (None if signer is None else signer.public_key)
        if key is None:
            msg = "An adapter registry was opened without a key."
            raise InvalidValue(msg, hint="Give the signing key, or the public key to trust.")
        self.root = root
        self.trusted = key
        self.blobs = BlobStore(root / "blobs", sealer)
        self.history = History(root / "history", trusted=key)
        self.manifests = Manifests(root / "versions", trusted=key)
        self._signer = signer
        self._open()

    @property
    def signer(self) -> SigningKey | None:
        """The key that signs; None where the registry can only be read."""
        return self._signer

    def add(
        self,
        adapter_dir: Path,
        *,
        name: str,
        base_digest: str,
        plan_digest: str | None = None,
        ledger_head: str | None = None,
        parent: str | None = None,
        audit: Mapping[str, Any] | None = None,
        audit_signature: Mapping[str, Any] | None = None,
        audit_key: str | None = None,
        files: tuple[str, ...] | None = None,
        withheld: bool = False,
    ) -> AdapterVersion:
        """Add a version; nothing is in use before :meth:`promote`.

        Args:
            adapter_dir: PEFT's folder: weights, configuration, and papers beside them.
            name: what the line of adapters is called.
            base_digest: of the base checkpoint.
            plan_digest: of the privacy plan of the run.
            ledger_head: hash at the end of the ledger's chain.
            parent: digest of the version that training went on from.
            audit: the parsed audit report; by default ``audit.json`` in the folder, if any.
            audit_signature: the parsed ``audit.sig.json``; by default the folder's, if any.
            audit_key: the public key that must have signed the report.
            files: names to take; by default the needed ones and the papers that are there.
            withheld: keep it as evidence alone; it can never be promoted or read by devices.

        Returns:
            The version; the one that is there already if nothing differs but the time.

        Raises:
            ReleaseRefused: if audit or ``release.json`` stand against it, unless withheld.
            AdapterCorrupt: if a file is missing, a link, or damaged.
            AdapterIncompatible: if it is no plain LoRA.
            InvalidValue: if a name or digest is malformed, or the parent is not known.
            OutOfDisk: if no space is left; the version does not exist then.
        """
        signer = self._require_signer()
        draft = read_draft(
            adapter_dir,
            audit=audit,
            audit_signature=audit_signature,
            audit_key=audit_key,
            names=files,
            withheld=withheld,
        )
        with self._locked():
            known = self.manifests.all()
            if parent is not None and parent not in known:
                msg = f"parent={parent[:12]!r} is no version of this registry."
                raise InvalidValue(msg, hint="List what is there: fedslm adapter list")
            last = self.history.numbers()
            manifest = AdapterManifest(
                name=name,
                sequence=1 + max((m.sequence for m, _ in known.values()), default=0),
                order=last[-1] if last else 0,
                created=utc_now(),
                base_digest=base_digest,
                plan_digest=plan_digest,
                ledger_head=ledger_head,
                parent=parent,
                files=draft.files,
                privacy=draft.evidence.privacy,
                audit=draft.evidence.audit,
                withheld=withheld,
            )
            same = [d for d, (m, _) in known.items() if content(m) == content(manifest)]
            self._store(draft)
            if not same:
                self.manifests.write(manifest, signer)
            return self.get(same[0] if same else manifest.digest)

    def versions(self) -> tuple[AdapterVersion, ...]:
        """Return every version, newest first.

        Raises:
            AdapterCorrupt: if a manifest is damaged; AdapterUntrusted if it is not signed.
        """
        states = states_of(self.history.all())
        found = self.manifests.all()
        versions = [version(m, signature, states) for m, signature in found.values()]
        return tuple(sorted(versions, key=lambda v: -int(v.manifest["sequence"])))

    def get(self, digest: str) -> AdapterVersion:
        """Return a version by its whole digest.

        Raises:
            AdapterError: if there is none.
            AdapterCorrupt: as :meth:`versions`.
        """
        manifest, signature = self.manifests.get(digest)
        return version(manifest, signature, states_of(self.history.all()))

    def current(self) -> AdapterVersion | None:
        """Return the version in use, or None before the first promotion."""
        order = self.order()
        return None if order is None else self.get(order.order.digest)

    def order(self) -> SignedOrder | None:
        """Return the newest order, which tells devices what to use; None before the first."""
        return self.history.last()

    def orders(self) -> tuple[SignedOrder, ...]:
        """Return all orders, oldest first; errors as :meth:`History.all`."""
        return self.history.all()

    def size(self, digest: str) -> int:
        """Return how many bytes :meth:`read` gives; errors as there."""
        return sum(size for _, size in self.manifests.parts(digest))

    def read(self, digest: str, offset: int, size: int) -> bytes:
        """Return bytes of an adapter, for resumable downloads.

        Args:
            digest: of a version (its files one after the other, in the manifest's order), or of
                one file of a version.
            offset: of the first byte, at least 0.
            size: how many at most, 0 to :data:`LARGEST_READ`.

        Returns:
            The bytes; fewer than ``size`` only at the end. The reader compares them with the
            manifest: what a disk damaged is given out as it is, unless it is sealed.

        Raises:
            AdapterError: if there is nothing of this digest.
            AdapterUntrusted: if it belongs to withheld versions alone.
            AdapterCorrupt: if the file is missing or shorter than the manifest says.
            InvalidValue: for an offset or size out of range.
        """
        if not (0 <= size <= LARGEST_READ and offset >= 0):
            msg = f"offset={offset} and size={size}, expected at most {LARGEST_READ} bytes."
            raise InvalidValue(msg)
        pieces, start = [], 0
        for blob, length in self.manifests.parts(digest):
            first, last = max(offset - start, 0), min(offset + size - start, length)
            if first < last:
                with self.blobs.open(blob) as opened:
                    piece = opened.read(first, last - first)
                if len(piece) != last - first:
                    msg = f"Blob {blob[:12]} is damaged."
                    raise AdapterCorrupt(msg, hint="Run: fedslm adapter verify")
                pieces.append(piece)
            start += length
        return b"".join(pieces)

    def promote(self, digest: str, *, unaudited: bool = False) -> AdapterVersion:
        """Put a version in use; one that is older than the version in use is a rollback.

        Args:
            digest: of the version.
            unaudited: whether a version without an audit may be used. Devices refuse it all the
                same unless their owners allow it.

        Raises:
            AdapterError: if there is no such version.
            ReleaseRefused: if it is withheld, or has no audit.
            AdapterCorrupt: if a file of it is damaged.
        """
        signer = self._require_signer()
        with self._locked():
            manifest, _ = self.manifests.get(digest)
            require_usable(manifest, unaudited=unaudited)
            self._check_files(manifest)
            last = self.history.last()
            if last is None or last.order.digest != digest:
                self._append(manifest, last, signer)
            return self.get(digest)

    def rollback(self) -> AdapterVersion:
        """Put the version in use that was before this one; again, and the one before that.

        Raises:
            AdapterError: if there is none before.
            AdapterCorrupt: if a file of it is damaged.
        """
        signer = self._require_signer()
        with self._locked():
            stack = stack_of(self.history.all())
            if len(stack) <= 1:
                msg = f"{len(stack)} versions were in use, expected one before the current."
                raise AdapterError(msg, hint="Promote a version: fedslm adapter promote")
            manifest, _ = self.manifests.get(stack[-2])
            self._check_files(manifest)
            self._append(manifest, self.history.last(), signer, kind="rollback")
            return self.get(manifest.digest)

    def remove(self, digest: str) -> None:
        """Forget a version; :meth:`collect` then frees its files.

        Raises:
            AdapterError: if there is none, or it is in use or what a rollback would go back to.
        """
        self._require_signer()
        with self._locked():
            self.manifests.get(digest)
            if digest in stack_of(self.history.all()):
                msg = f"adapter {digest[:12]} is in use, or a rollback would go back to it."
                raise AdapterError(msg, hint="Promote others first.")
            self.manifests.remove(digest)

    def collect(self) -> Collected:
        """Remove blobs that no version names, and what crashes left behind."""
        self._require_signer()
        with self._locked():
            strangers = [
                *self.blobs.strangers(),
                *self.manifests.strangers(),
                *self.history.strangers(),
            ]
            for path in strangers:
                if path.is_dir() and not path.is_symlink():
                    continue
                with disk_errors(path):
                    path.unlink()
            wanted = {f.sha256 for m, _ in self.manifests.all().values() for f in m.files}
            unwanted = self.blobs.digests() - wanted
            freed = sum(self.blobs.remove(digest) for digest in sorted(unwanted))
            return Collected(blobs=len(unwanted), strangers=len(strangers), bytes=freed)

    def reseal(self) -> int:
        """Seal every blob with the newest key; return how many changed.

        Raises:
            AdapterCorrupt: at the first damaged blob; what was resealed before it is fine.
        """
        self._require_signer()
        with self._locked():
            files = {f.sha256: f.size for m, _ in self.manifests.all().values() for f in m.files}
            return sum(self.blobs.reseal(digest, size) for digest, size in sorted(files.items()))

    def _open(self) -> None:
        """Make the folder, or check that it is a registry."""
        mark = self.root / MARK
        if not mark.exists():
            if self._signer is None:
                msg = f"{self.root.name!r} holds no adapter registry."
                raise FleetError(msg, hint="Give the folder of a server, or its adapters folder.")
            make_private_folder(self.root)
            replace_private(mark, to_json({"schema": SCHEMA}))
        found = read_json(mark, largest=1 << 12).get("schema")
        if found != SCHEMA:
            msg = f"The adapter registry has schema {found!r}, expected {SCHEMA}."
            raise FleetError(msg, hint="A newer fedslm wrote it; upgrade this one.")

    def _store(self, draft: Draft) -> None:
        """Put a draft's files among the blobs."""
        for entry in draft.files:
            with draft.open(entry.name) as stream:
                digest, size = self.blobs.put(stream, limit=entry.size)
            if (digest, size) != (entry.sha256, entry.size):
                msg = f"{entry.name} changed while it was read."
                raise AdapterCorrupt(msg, hint="Wait until it is whole, then add it again.")

    def _append(
        self,
        manifest: AdapterManifest,
        last: SignedOrder | None,
        signer: SigningKey,
        *,
        kind: str | None = None,
    ) -> None:
        """Write the order that puts a version in use."""
        older = last is not None and manifest.sequence < last.order.sequence
        self.history.append(
            kind=kind or ("rollback" if older else "promote"),
            digest=manifest.digest,
            sequence=manifest.sequence,
            now=utc_now(),
            key=signer,
        )

    def _check_files(self, manifest: AdapterManifest) -> None:
        """Compare every file of a version with its digest."""
        for entry in manifest.files:
            self.blobs.check(entry.sha256, entry.size)

    def _require_signer(self) -> SigningKey:
        """Return the signing key, without which nothing is changed."""
        if self._signer is None:
            msg = "The adapter registry is open for reading alone."
            raise AdapterError(msg, hint="Give the signing key of the server with --key.")
        return self._signer

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process (and one thread of it) at a time change the registry."""
        path = self.root / ".lock"
        with ExitStack() as held:
            with disk_errors(path):
                held.enter_context(exclusive(path))
            yield
