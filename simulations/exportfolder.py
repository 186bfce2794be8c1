"""The folder of an export: the files of a runtime, the adapter they came from, and what they are.

::

    export.json         format, every file by size and SHA-256, base, audit verdict, what is claimed
    export.sig.json     signature of it with the server's adapter key, where that was at hand
    adapter/            the adapter itself, with the manifest and signature that were verified
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.exports.record import (
    ADAPTER,
    DOMAIN,
    EXPORT,
    EXPORT_SIGNATURE,
    SCHEMA,
    file_entry,
    read_record,
)
from shared.canonical import canonical_json, sha256_hex
from shared.errors import AdapterCorrupt, OutOfDisk, RunFolderExists
from shared.files import disk_errors, write_bytes, write_json
from simulations.exportsource import Source, find_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export on disk.

    Attributes:
        folder: where it is.
        record: the contents of ``export.json``.
        signed_by: the public key that signed it; None without one.
        warnings: what the person who exports should know.
    """

    folder: Path
    record: Mapping[str, Any]
    signed_by: str | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that commands print."""
        return {
            **self.record,
            "folder": str(self.folder),
            "signed_by": self.signed_by,
            "warnings": list(self.warnings),
        }


def write_export(
    source: Source, to: Path, *, kind: str, write: Callable[[Path], Mapping[str, Any]]
) -> Export:
    """Make an export; it appears with everything in it, or not at all.

    Args:
        source: the verified adapter.
        to: a folder that does not exist.
        kind: the format's name.
        write: writes a runtime's files into an empty folder and returns what to record of them.

    Raises:
        RunFolderExists: if the folder exists.
        OutOfDisk: if no space is left.
    """
    if os.path.lexists(to):
        msg = f"{to.name!r} exists already."
        raise RunFolderExists(msg, hint="Choose another --to.")
    staged = to.with_name(f".{to.name}.{secrets.token_hex(8)}")
    try:
        with disk_errors(to):
            (staged / ADAPTER).mkdir(parents=True)
        details = dict(write(staged))
        for name, data in source.files.items():
            write_bytes(staged / ADAPTER / name, data)
        record = _record(source, kind, details, staged)
        signed_by = _finish(source, staged, record)
        with disk_errors(to):
            staged.rename(to)
    except OSError as error:
        msg = f"{to.name!r} could not be written ({type(error).__name__})."
        raise OutOfDisk(msg, hint="Is there space, and may you write there?") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Export(folder=to, record=record, signed_by=signed_by, warnings=source.warnings)


def verify_export(folder: Path, *, public_key: str | None = None) -> Export:
    """Check an export: its signature, every file of it, and the adapter that it came from.

    Args:
        folder: what :func:`write_export` made.
        public_key: the only key whose signatures count; with it, an unsigned export is refused.

    Raises:
        AdapterUntrusted: if a signature is missing, of another key, or does not hold.
        AdapterCorrupt: if a file is missing, changed, or not listed.
        ReleaseRefused: if the adapter's audit found a violation.
    """
    record, signed_by = read_record(folder, public_key=public_key)
    source = find_source(folder / ADAPTER, public_key=public_key)
    if record.get("adapter") != source.digest:
        msg = f"{EXPORT} is about another adapter."
        raise AdapterCorrupt(msg, hint="Export it again.")
    unsigned = () if signed_by else ("The export is not signed.",)
    return Export(
        folder=folder,
        record=record,
        signed_by=signed_by,
        warnings=(*unsigned, *source.warnings),
    )


def facts_of(source: Source, base_digest: str) -> dict[str, str]:
    """Return what a file of another runtime says of itself, by GGUF's kind of keys."""
    facts = {
        "fedslm.adapter": source.digest,
        "fedslm.base": base_digest,
        "fedslm.audit": source.verdict or "none",
        "fedslm.privacy": json.dumps(asdict(source.privacy), sort_keys=True),
    }
    return facts if source.signed_by is None else {**facts, "fedslm.signed_by": source.signed_by}


def _record(source: Source, kind: str, details: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the contents of ``export.json``."""
    files = sorted(path for path in folder.iterdir() if path.name != ADAPTER)
    return {
        "schema": SCHEMA,
        "format": kind,
        "name": source.name,
        "adapter": source.digest,
        "base_digest": source.base_digest,
        "audit_verdict": source.verdict,
        "privacy": asdict(source.privacy),
        "files": [file_entry(path) for path in files],
        **details,
    }


def _finish(source: Source, folder: Path, record: Mapping[str, Any]) -> str | None:
    """Write the record, signed if there is a key, after every file is durable."""
    data = canonical_json(dict(record)).encode()
    write_bytes(folder / EXPORT, data)
    if source.signer is None:
        return None
    signature = source.signer.sign(DOMAIN, sha256_hex(data))
    write_json(folder / EXPORT_SIGNATURE, signature.to_dict())
    return signature.public_key
