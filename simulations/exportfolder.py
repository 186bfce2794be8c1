"""The folder of an export: the files of a runtime, the adapter they came from, and what they are.

::

    export.json         format, every file by size and SHA-256, base, audit verdict, what is claimed
    export.sig.json     signature of it with the server's adapter key, where that was at hand
    adapter/            the adapter itself, with the manifest and signature that were verified
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.adapterfiles import read_bounded
from shared.canonical import canonical_json, sha256_hex
from shared.crypto import Signature
from shared.documents import LARGEST_DOCUMENT, check_signed
from shared.errors import (
    AdapterCorrupt,
    AdapterUntrusted,
    InvalidValue,
    OutOfDisk,
    RunFolderExists,
)
from shared.files import disk_errors, write_bytes, write_json
from shared.manifest import is_file_name
from shared.regularfile import open_regular
from simulations.exportsource import ADAPTER, Source, find_source

EXPORT = "export.json"
EXPORT_SIGNATURE = "export.sig.json"
DOMAIN = "fedslm-export-v1"
SCHEMA = 1
_PIECE = 1 << 20


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
    data = read_bounded(folder / EXPORT, LARGEST_DOCUMENT)
    signed_by = _signer(folder, data, public_key)
    record = _object(data)
    listed = {entry["name"]: entry for entry in _entries(record)}
    found = {path.name for path in folder.iterdir()} - {EXPORT, EXPORT_SIGNATURE, ADAPTER}
    if set(listed) != found:
        msg = f"{folder.name!r} holds other files than {EXPORT} lists."
        raise AdapterCorrupt(msg, hint="Export it again.")
    for name, entry in listed.items():
        if _entry(folder / name) != entry:
            msg = f"{name} of the export is not the file that {EXPORT} lists."
            raise AdapterCorrupt(msg, hint="Export it again.")
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
        "files": [_entry(path) for path in files],
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


def _entry(path: Path) -> dict[str, Any]:
    """Return name, size and SHA-256 of a regular file."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return {"name": path.name, "size": size, "sha256": digest.hexdigest()}


def _signer(folder: Path, data: bytes, public_key: str | None) -> str | None:
    """Check the signature of ``export.json``, and return whose it is."""
    place = folder / EXPORT_SIGNATURE
    if not os.path.lexists(place):
        if public_key is None:
            return None
        msg = f"The export is not signed, expected key {public_key[:12]}."
        raise AdapterUntrusted(msg, hint="Export from the server's own folder.")
    try:
        signature = Signature.from_dict(_object(read_bounded(place, LARGEST_DOCUMENT)))
    except InvalidValue as error:
        msg = f"{EXPORT_SIGNATURE} is no signature."
        raise AdapterCorrupt(msg) from error
    check_signed(data, signature, domain=DOMAIN, trusted=public_key or signature.public_key)
    return signature.public_key


def _entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the list of files; plain names alone."""
    files = record.get("files")
    well = isinstance(files, list) and all(
        isinstance(entry, dict)
        and set(entry) == {"name", "size", "sha256"}
        and isinstance(entry["name"], str)
        and is_file_name(entry["name"])
        for entry in files
    )
    if record.get("schema") != SCHEMA or not well:
        msg = f"{EXPORT} is no record of schema {SCHEMA}."
        raise AdapterCorrupt(msg, hint="Is the server newer than this program?")
    return list(files or ())


def _object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{EXPORT} or its signature is no JSON."
        raise AdapterCorrupt(msg, hint="Export it again.") from error
    return value if isinstance(value, dict) else {}
