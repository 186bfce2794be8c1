"""The record of an export: what its files are, and whether they are still that; without torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.adapterfiles import read_bounded
from shared.crypto import Signature
from shared.documents import LARGEST_DOCUMENT, check_signed
from shared.errors import AdapterCorrupt, AdapterUntrusted, InvalidValue
from shared.manifest import is_file_name
from shared.regularfile import open_regular

EXPORT = "export.json"
EXPORT_SIGNATURE = "export.sig.json"
ADAPTER = "adapter"
DOMAIN = "fedslm-export-v1"
SCHEMA = 1
_PIECE = 1 << 20


def read_record(
    folder: Path, *, public_key: str | None = None
) -> tuple[Mapping[str, Any], str | None]:
    """Check an export's signature, and every file of it but the adapter's own.

    Args:
        folder: of the export.
        public_key: the only key whose signatures count; with it, an unsigned export is refused.

    Returns:
        The contents of ``export.json``, and the public key that signed it; None without one.

    Raises:
        AdapterUntrusted: if the signature is missing, of another key, or does not hold.
        AdapterCorrupt: if a file is missing, changed, or not listed.
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
        if file_entry(folder / name) != entry:
            msg = f"{name} of the export is not the file that {EXPORT} lists."
            raise AdapterCorrupt(msg, hint="Export it again.")
    return record, signed_by


def file_entry(path: Path) -> dict[str, Any]:
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
