"""A version's files in a folder of their own, for a runtime that is not fedslm's."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path

from server.registry.store import AdapterRegistry
from shared.errors import AdapterCorrupt, AdapterUntrusted, RunFolderExists
from shared.files import disk_errors
from shared.manifest import FileEntry
from shared.privatefiles import replace_private


def export_version(registry: AdapterRegistry, digest: str, to: Path) -> None:
    """Write the files of a version, ``manifest.json`` and ``signature.json``.

    Args:
        registry: where the version is.
        digest: of the version.
        to: a folder that does not exist; it appears with everything in it, or not at all.

    Raises:
        RunFolderExists: if the folder exists.
        AdapterUntrusted: if the version is withheld.
        AdapterCorrupt: if a file is damaged.
        OutOfDisk: if no space is left.
    """
    version = registry.get(digest)
    if version.state == "withheld":
        msg = f"adapter {digest[:12]} is withheld."
        raise AdapterUntrusted(msg, hint="It is kept as evidence, and never given out.")
    if os.path.lexists(to):
        msg = f"{to.name!r} exists already."
        raise RunFolderExists(msg, hint="Choose another --to.")
    staged = to.with_name(f".{to.name}.{secrets.token_hex(8)}")
    try:
        with disk_errors(to):
            staged.mkdir(parents=True, mode=0o700)
            for entry in version.facts.files:
                _write(registry, entry, staged)
        replace_private(staged / "manifest.json", version.manifest_bytes)
        signature = json.dumps(version.signature.to_dict(), indent=2, sort_keys=True)
        replace_private(staged / "signature.json", signature.encode())
        with disk_errors(to):
            staged.rename(to)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(registry: AdapterRegistry, entry: FileEntry, folder: Path) -> None:
    """Write one file and compare it with the manifest."""
    digest, size = hashlib.sha256(), 0
    with registry.blobs.open(entry.sha256) as blob, (folder / entry.name).open("xb") as target:
        for piece in blob.pieces():
            digest.update(piece)
            size += len(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    if size != entry.size or digest.hexdigest() != entry.sha256:
        msg = f"{entry.name} of the adapter is damaged."
        raise AdapterCorrupt(msg, hint="Run: fedslm adapter verify")
