"""The folder of a device's adapters: one folder for each version, put there whole or not at all.

::

    versions/DIGEST/         manifest.json, signature.json and the files that the manifest names
    incoming/DIGEST          downloads that may be resumed; nothing reads them but :meth:`place`

What is here was verified once; :mod:`client.adapterstore` decides what gets in and what is used.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from client.adapterfiles import Source, copy_files, load_files, read_bounded
from shared.crypto import Signature
from shared.documents import LARGEST_DOCUMENT, is_digest
from shared.errors import AdapterCorrupt, FedSLMError, InvalidValue
from shared.files import disk_errors
from shared.manifest import AdapterManifest
from shared.privatefiles import make_private_folder, replace_private

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
_LARGEST_SIGNATURE = 1 << 12


class VersionFolder:
    """The versions on a device, and the downloads that may become some.

    Args:
        folder: of the device's adapters, which is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, digest: str) -> Path:
        """Return the folder of a version."""
        return self._folder / "versions" / digest

    def incoming(self, digest: str) -> Path:
        """Return where a download of a version or of one file goes.

        Raises:
            InvalidValue: for what is no digest.
        """
        if not is_digest(digest):
            msg = "A download is named by 64 lower-case hexadecimal digits."
            raise InvalidValue(msg)
        make_private_folder(self._folder / "incoming")
        return self._folder / "incoming" / digest

    def signed(self, digest: str) -> tuple[bytes, Signature]:
        """Return the manifest of an installed version and its signature, neither verified.

        Raises:
            AdapterCorrupt: if one is missing, too large or damaged.
        """
        data = read_bounded(self.of(digest) / MANIFEST, LARGEST_DOCUMENT)
        raw = read_bounded(self.of(digest) / SIGNATURE, _LARGEST_SIGNATURE)
        try:
            return data, Signature.from_dict(_object(raw))
        except (InvalidValue, ValueError, RecursionError) as error:
            msg = f"adapter {digest[:12]}: its signature is damaged."
            raise AdapterCorrupt(msg, hint="Fetch it again.") from error

    def place(
        self,
        verified: AdapterManifest,
        manifest: bytes,
        signature: Signature,
        weights: Source | None,
    ) -> None:
        """Copy a version beside the others, check it as a loader would, and rename it in.

        Args:
            verified: what was read of the manifest.
            manifest: its bytes.
            signature: of the manifest.
            weights: the files; by default the version's own download.

        Raises:
            AdapterCorrupt: if a file is not the one that the manifest names, or no safe weights.
            AdapterIncompatible: if it is no plain LoRA.
            OutOfDisk: if no space is left. After any error nothing of it is left.
        """
        versions = self._folder / "versions"
        make_private_folder(versions)
        staged = versions / f".{verified.digest}.{secrets.token_hex(8)}"
        source = self.incoming(verified.digest) if weights is None else weights
        try:
            with disk_errors(staged):
                staged.mkdir(mode=0o700)
            copy_files(verified, source, staged)
            replace_private(staged / MANIFEST, manifest)
            signed = json.dumps(signature.to_dict(), indent=2, sort_keys=True)
            replace_private(staged / SIGNATURE, signed.encode())
            load_files(verified, staged)
            final = self.of(verified.digest)
            with disk_errors(final):
                _remove(final)
                staged.rename(final)
                _sync(versions)
        except FedSLMError:
            _remove(staged)
            # A damaged download is not the beginning of a good one.
            for name in (verified.digest, *(entry.sha256 for entry in verified.files)):
                _remove(self.incoming(name))
            raise

    def prune(self, kept: Collection[str]) -> None:
        """Remove all versions but some, and what crashes left."""
        for path in (self._folder / "versions").glob("*"):
            if path.name not in kept:
                _remove(path)

    def forget_downloads(self) -> None:
        """Remove every download."""
        for path in (self._folder / "incoming").glob("*"):
            _remove(path)


def _object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; anything else has no keys."""
    value = json.loads(data.decode("utf-8"))
    return value if isinstance(value, dict) else {}


def _remove(path: Path) -> None:
    """Remove a folder or file if it is there; a link is removed, never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
