"""A traced step as a program for ExecuTorch, with its frozen weights in a file beside it.

The operations are those of ExecuTorch's portable kernels: nothing is delegated, so that the program
runs wherever ExecuTorch does. Memory is planned ahead, for one example.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from client.edge.fewbits import quantise_graph
from client.edge.program import PTD, PTE
from client.edge.turning import turn_vectors
from shared.errors import MissingDependency, UnsupportedModel

if TYPE_CHECKING:
    from client.edge.trace import TracedStep

_INLINE = 256  # bytes; smaller constants are part of the program, not of the base
_APART = "base"
_LOGGERS = ("torch.export", "torch.utils._pytree", "torchao", "executorch", "root")


def write_executorch(traced: TracedStep, folder: Path, *, quantization: str) -> None:
    """Write ``step.pte`` and ``base.ptd`` into a folder.

    Args:
        traced: one example's gradient; its graph is changed where weights are quantised.
        folder: an existing folder.
        quantization: of the frozen weights: ``"none"``, ``"int8"`` or ``"int4"``.

    Raises:
        UnsupportedModel: if there is no such program, or nothing in it that can be quantised.
        MissingDependency: if ExecuTorch is not installed.
    """
    if quantization != "none":
        taken = quantise_graph(traced.graph, bits=8 if quantization == "int8" else 4)
        if not taken:
            msg = "No product of this model has a constant matrix that can be quantised."
            raise UnsupportedModel(msg, hint="Export it with --quantization none.")
    turn_vectors(traced.graph)
    with quiet_executorch():
        exported = torch.export.export(traced.graph, traced.example, strict=False)
        lowered = lower(exported)
        with (folder / PTE).open("wb") as stream:
            lowered.write_to_file(stream)
    (folder / PTD).write_bytes(weights_file(lowered))


def lower(
    exported: torch.export.ExportedProgram, *, inside: Callable[[str], bool] = lambda _: False
) -> Any:  # noqa: ANN401  (untyped)
    """Return ExecuTorch's form of a program, with large constants in a file of their own.

    Args:
        exported: the program.
        inside: tells by a constant's name whether it stays in the program, whatever its size.

    Raises:
        UnsupportedModel: if ExecuTorch has no operation for a part of it.
        MissingDependency: if ExecuTorch is not installed.
    """
    try:
        from executorch import exir
        from executorch.exir.error import ExportError, InternalError
    except ImportError as error:
        msg = f"This export needs {error.name}, which is not installed."
        raise MissingDependency(msg, hint="pip install 'fedslm[export]'") from error
    reason = ""
    try:
        edge = exir.to_edge_transform_and_lower(
            exported, compile_config=exir.EdgeCompileConfig(_check_ir_validity=False)
        )
        apart = partial(_where, inside=inside)
        return edge.to_executorch(exir.ExecutorchBackendConfig(external_constants=apart))
    except (ExportError, InternalError, RuntimeError) as error:
        reason = type(error).__name__
    msg = f"ExecuTorch has no program for this model ({reason})."
    raise UnsupportedModel(msg, hint="Export it for ONNX Runtime: --runtime onnx.")


def weights_file(lowered: Any) -> bytes:  # noqa: ANN401  (untyped)
    """Return the file of the constants that :func:`lower` put apart; empty without any."""
    return bytes(lowered._tensor_data.get(_APART, b""))


@contextmanager
def quiet_executorch() -> Iterator[None]:
    """Keep the exporter's and the runtime's advice off stderr."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _where(node: torch.fx.Node, *, inside: Callable[[str], bool]) -> str | None:
    """Return the file that a constant belongs to; None for the program itself."""
    value = node.meta["val"]
    small = value.numel() * value.element_size() < _INLINE
    return None if small or inside(str(node.target)) else _APART
