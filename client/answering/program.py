"""A base model in another runtime's format, as ``fedslm export`` wrote it: verified, then opened.

What a device answers with is named, file by file, in ``export.json``, which the server signs with
the key that signs adapters. Nothing is given to a runtime before all of it was compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from client.adapterfiles import VerifiedAdapter, load_files, read_bounded
from client.exports.onnxnames import TOKENIZER
from client.exports.programfacts import ProgramFacts
from client.exports.record import ADAPTER, EXPORT, read_record
from shared.crypto import Signature
from shared.documents import LARGEST_DOCUMENT, is_digest
from shared.errors import AdapterCorrupt, AdapterUntrusted, InvalidValue, UsageError
from shared.manifest import read_manifest

if TYPE_CHECKING:
    from client.adapterrules import AdapterPolicy

RUNTIMES: Final = ("torch", "onnx", "llama")
FORMATS: Final = {"onnx": "onnx", "gguf": "llama"}
"""Which runtime a format of an export is for."""

STEP: Final = "step.json"
_ONCE = "Export the base once: fedslm export onnx --graph, or fedslm export gguf --base-type q8_0."


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A verified base model in another runtime's format.

    Attributes:
        folder: of the export.
        runtime: that it is for, "onnx" or "llama".
        base_digest: of the checkpoint that it was made from, as the record says.
        facts: what the runtime must know.
        signed_by: the key that signed the record; None without a signature.
    """

    folder: Path
    runtime: str
    base_digest: str
    facts: ProgramFacts
    signed_by: str | None

    @property
    def path(self) -> Path:
        """Return where the program, or the file of the weights, is."""
        return self.folder / self.facts.file


def runtime_of(folder: Path) -> str:
    """Return the runtime that a folder is for, from what is in it; nothing is verified.

    Raises:
        UsageError: for an exported step, which trains and does not answer, and for an export of
            another runtime.
        AdapterCorrupt: if the record of an export cannot be read.
    """
    if (folder / EXPORT).exists():
        try:
            found = json.loads(read_bounded(folder / EXPORT, LARGEST_DOCUMENT))
            kind = str(found["format"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            msg = f"{EXPORT} of {folder.name!r} is no record of an export."
            raise AdapterCorrupt(msg, hint="Export it again.") from error
        runtimes = {**FORMATS, "merged": "torch"}
        if kind not in runtimes:
            msg = f"{folder.name!r} is an export for {kind[:20]!r}, by which nothing here answers."
            raise UsageError(msg, hint=f"Expected one of: {', '.join(sorted(runtimes))}.")
        return runtimes[kind]
    if (folder / STEP).exists() and not (folder / "config.json").exists():
        msg = f"{folder.name!r} holds an exported step: it trains, and cannot answer."
        raise UsageError(msg, hint=f'{_ONCE} Then: answers = "FOLDER" in node.toml, or --base.')
    return "torch"


def open_program(folder: Path, *, trusted: str | None) -> Program:
    """Verify an export that has a base in it.

    The files are compared where they lie and opened again by the runtime: a folder that somebody
    else may write to is no place for them.

    Args:
        folder: of the export.
        trusted: the only key whose signature counts; None takes any, and none.

    Raises:
        AdapterUntrusted: if the signature is missing, of another key, or does not hold.
        AdapterCorrupt: if a file is missing, changed, or not listed.
        UsageError: if the export has an adapter alone.
    """
    record, signed_by = read_record(folder, public_key=trusted)
    runtime, base = FORMATS.get(str(record.get("format"))), record.get("base_digest")
    if runtime is None or "program" not in record:
        msg = f"{folder.name!r} is an export without the base model."
        raise UsageError(msg, hint=_ONCE)
    facts = ProgramFacts.from_json(record["program"])
    named = {entry["name"] for entry in record["files"]}
    needed = {facts.file, *([TOKENIZER] if runtime == "onnx" else [])}
    if not (isinstance(base, str) and is_digest(base) and needed <= named):
        msg = f"{EXPORT} names no base model, or not all of its files."
        raise AdapterCorrupt(msg, hint="Export it again.")
    return Program(
        folder=folder, runtime=runtime, base_digest=base, facts=facts, signed_by=signed_by
    )


def open_adapter(program: Program, *, trusted: str, policy: AdapterPolicy) -> VerifiedAdapter:
    """Verify the adapter that travelled with an export, and load it.

    Args:
        program: the export.
        trusted: the only key whose signature counts.
        policy: what the owner demands.

    Raises:
        AdapterUntrusted: for a signature, base or audit verdict that is not what it must be.
        AdapterCorrupt: if a file is missing or damaged.
        AdapterIncompatible: if it is no plain LoRA.
    """
    folder = program.folder / ADAPTER
    if not (folder / "manifest.json").exists():
        msg = "The adapter of the export has no signed manifest."
        raise AdapterUntrusted(msg, hint="Export a version of a registry.")
    data = read_bounded(folder / "manifest.json", LARGEST_DOCUMENT)
    try:
        signature = Signature.from_dict(_object(read_bounded(folder / "signature.json", 1 << 12)))
    except (InvalidValue, ValueError, RecursionError) as error:
        msg = "The signature of the export's adapter is damaged."
        raise AdapterCorrupt(msg, hint="Export it again.") from error
    manifest = read_manifest(data, signature, trusted=trusted)
    policy.check(manifest, base_digest=program.base_digest)
    return load_files(manifest, folder)


def _object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; anything else has no keys."""
    value = json.loads(data.decode("utf-8"))
    return value if isinstance(value, dict) else {}
