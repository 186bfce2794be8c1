"""An adapter's folder before it is a version: read without following links, checked, hashed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from server.registry.blobs import hash_stream
from server.registry.evidence import Evidence, examine
from shared.errors import AdapterCorrupt, InvalidValue
from shared.loraconfig import check_factors, read_lora_config
from shared.manifest import (
    LARGEST_OTHER,
    LARGEST_WEIGHTS,
    NEEDED,
    OPTIONAL,
    PEFT_CONFIG,
    RELEASE,
    REPORT,
    REPORT_SIGNATURE,
    RUN_MANIFEST,
    WEIGHTS,
    FileEntry,
    is_file_name,
)
from shared.regularfile import open_regular
from shared.tensorfile import read_tensor_header


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An adapter that may become a version.

    Attributes:
        folder: where its files are.
        files: names, sizes and digests, sorted by name.
        evidence: what its papers say.
        given: files that were given apart from the folder, by name; they count instead of its own.
    """

    folder: Path
    files: tuple[FileEntry, ...]
    evidence: Evidence
    given: Mapping[str, bytes]

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file of the draft."""
        return _open(self.folder, name, self.given)


def read_draft(
    folder: Path,
    *,
    audit: Mapping[str, Any] | None,
    audit_signature: Mapping[str, Any] | None,
    audit_key: str | None,
    names: tuple[str, ...] | None,
    withheld: bool,
) -> Draft:
    """Read and check an adapter's folder; arguments and errors as ``AdapterRegistry.add``."""
    apart = {REPORT: audit, REPORT_SIGNATURE: audit_signature}
    given = {name: _to_json(value) for name, value in apart.items() if value is not None}
    chosen = _names(folder, names, given)
    entries = tuple(_entry(folder, name, given) for name in chosen)
    digests = {entry.name: entry.sha256 for entry in entries}
    _check_weights(folder)
    papers = (RUN_MANIFEST, REPORT, REPORT_SIGNATURE, RELEASE)
    documents = {name: _bytes(folder, name, given) for name in papers if name in digests}
    evidence = examine(
        digests[WEIGHTS],
        report=_report(documents),
        documents=documents,
        trusted=audit_key,
        withheld=withheld,
    )
    return Draft(folder=folder, files=entries, evidence=evidence, given=given)


def _to_json(value: Mapping[str, Any]) -> bytes:
    """Return a paper as a file holds it."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _names(folder: Path, names: tuple[str, ...] | None, given: Mapping[str, bytes]) -> list[str]:
    """Return the sorted names of the files to take."""
    if names is None:
        # A link is there too, and is refused when it is opened.
        names = (*NEEDED, *(name for name in OPTIONAL if os.path.lexists(folder / name)))
    for name in names:
        if not is_file_name(name):
            msg = "A file name of an adapter is not plain."
            raise InvalidValue(msg, hint="Use letters, digits, '_', '-' and single dots.")
    return sorted({*names, *NEEDED, *given})


def _entry(folder: Path, name: str, given: Mapping[str, bytes]) -> FileEntry:
    """Return name, size and digest of a file."""
    limit = LARGEST_WEIGHTS if name == WEIGHTS else LARGEST_OTHER
    with _open(folder, name, given) as stream:
        digest, size = hash_stream(stream, limit=limit)
    if size == 0:
        msg = f"{name} of the adapter is empty."
        raise AdapterCorrupt(msg, hint="Take it from the run folder again.")
    return FileEntry(name=name, size=size, sha256=digest)


def _check_weights(folder: Path) -> None:
    """Require a plain LoRA: what a device would refuse is not added at all."""
    terms = read_lora_config(_bytes(folder, PEFT_CONFIG, {}))
    with open_regular(folder / WEIGHTS) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        check_factors(read_tensor_header(stream, size), terms)


def _report(documents: Mapping[str, bytes]) -> Mapping[str, Any] | None:
    """Return the parsed audit report, or None without one."""
    if REPORT not in documents:
        return None
    try:
        value = json.loads(documents[REPORT].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{REPORT} of the adapter is no JSON."
        raise AdapterCorrupt(msg) from error
    if not isinstance(value, dict):
        msg = f"{REPORT} of the adapter is no JSON object."
        raise AdapterCorrupt(msg)
    return value


def _bytes(folder: Path, name: str, given: Mapping[str, bytes]) -> bytes:
    """Read a small file whole."""
    with _open(folder, name, given) as stream:
        data = stream.read(LARGEST_OTHER + 1)
    if not len(data) <= LARGEST_OTHER:
        msg = f"{name} of the adapter has more than {LARGEST_OTHER} bytes."
        raise AdapterCorrupt(msg)
    return data


@contextmanager
def _open(folder: Path, name: str, given: Mapping[str, bytes]) -> Iterator[BinaryIO]:
    """Open a file that was given, or else one of the folder."""
    if name in given:
        yield io.BytesIO(given[name])
        return
    with open_regular(folder / name) as stream:
        yield stream
