"""Opening a base model in the runtime that its folder is for; nothing unverified is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.answering.engine import KV_CACHES
from client.answering.program import FORMATS, RUNTIMES, Program, open_program, runtime_of
from shared.computedtype import default_compute_dtype
from shared.errors import InvalidValue, UsageError
from shared.registry import suggestion

if TYPE_CHECKING:
    from client.answering.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A base model whose files are verified.

    Attributes:
        runtime: "torch", "onnx" or "llama".
        base_digest: of its checkpoint.
        kv_cache: how keys and values are kept.
        engine: opens the runtime, once.
        program: the export; None for torch.
    """

    runtime: str
    base_digest: str
    kv_cache: str
    engine: Callable[[], Engine]
    program: Program | None = None


def open_base(
    folder: Path,
    *,
    runtime: str | None,
    quantization: str | None,
    kv_cache: str | None,
    trusted: str | None,
) -> Opened:
    """Find out what a folder is for, and verify it.

    Args:
        folder: of transformers, or of an export that has a base in it.
        runtime: which one it must be for; None for whichever it is.
        quantization: for torch, how the base is kept in memory; None as it is stored.
        kv_cache: how keys and values are kept; None as the runtime has it.
        trusted: the only key whose signature of an export counts; None takes any, and none.

    Raises:
        InvalidValue: for an unknown word.
        UsageError: if the folder is for another runtime, or the runtime has no such cache.
        AdapterUntrusted: if an export's signature is not what it must be.
        AdapterCorrupt: if a file of it is missing or changed.
        ModelNotFound: and the other errors of :func:`client.model.load_base`.
    """
    _require_known(runtime, kv_cache)
    found = runtime_of(folder)
    if runtime is not None and runtime != found:
        _refuse_runtime(folder, runtime, found)
    if found == "torch":
        return _open_torch(folder, quantization, kv_cache)
    if quantization is not None:
        msg = f"--quantization {quantization} with an export, which has its own."
        raise UsageError(msg, hint="Leave it out.")
    program = open_program(folder, trusted=trusted)
    kept = _cache_of(program, kv_cache)
    made: list[Engine] = []

    def engine() -> Engine:
        if not made:
            made.append(_open(program, kept))
        return made[0]

    return Opened(
        runtime=found,
        base_digest=program.base_digest,
        kv_cache=kept,
        engine=engine,
        program=program,
    )


def _open(program: Program, kv_cache: str) -> Engine:
    """Open a verified export."""
    if program.runtime == "onnx":
        from client.answering.withonnx import OnnxEngine

        return OnnxEngine(program)
    from client.answering.withllama import LlamaEngine

    return LlamaEngine(program, kv_cache=kv_cache)


def _open_torch(folder: Path, quantization: str | None, kv_cache: str | None) -> Opened:
    """Load a folder of transformers."""
    if kv_cache not in {None, "none"}:
        msg = (
            f"--kv-cache {kv_cache} with torch, whose quantised caches need optimum-quanto or hqq."
        )
        raise UsageError(msg, hint='Answer with onnx ("int8") or llama ("q8_0", "q4_0").')
    from client.answering.withtorch import TorchEngine
    from client.model import load_base, stored_quantization

    stored = stored_quantization(folder) if quantization is None else quantization
    products = default_compute_dtype(stored)
    base = load_base(str(folder), quantization=stored, compute_dtype=products)
    engine = TorchEngine.of(base)
    return Opened(runtime="torch", base_digest=base.digest, kv_cache="none", engine=lambda: engine)


def _cache_of(program: Program, asked: str | None) -> str:
    """Return how keys and values are kept; the runtime must be able to."""
    has = program.facts.kv_cache
    if program.runtime == "llama":
        if asked == "int8":
            msg = "--kv-cache int8 with llama, which has q8_0 and q4_0."
            raise UsageError(msg, hint="Take --kv-cache q8_0.")
        return asked or "none"
    if asked is not None and asked != has:
        msg = f"--kv-cache {asked}, and the exported graph was made with {has}."
        hint = "Export the graph so: fedslm export onnx --graph --kv-cache int8"
        raise UsageError(msg, hint=hint)
    return has


def _require_known(runtime: str | None, kv_cache: str | None) -> None:
    """Refuse unknown words."""
    for name, value, known in (("runtime", runtime, RUNTIMES), ("kv_cache", kv_cache, KV_CACHES)):
        if value is not None and value not in known:
            msg = f"{name}={value!r}, expected one of: {', '.join(known)}."
            raise InvalidValue(msg, hint=suggestion(value, known))


def _refuse_runtime(folder: Path, asked: str, found: str) -> None:
    """Say what a folder is, and how to get what was asked for."""
    how = {
        "torch": "Give a folder of transformers: --base FOLDER",
        "onnx": "Make it where torch is: fedslm export onnx SERVER --to DIR --graph",
        "llama": "Make it where torch is: fedslm export gguf SERVER --to DIR --base-type q8_0",
    }
    kind = {name: kind for kind, name in FORMATS.items()}.get(found, "transformers")
    msg = f"The base in {folder.name!r} is for {found} ({kind}), not for {asked}."
    raise UsageError(msg, hint=how[asked])
