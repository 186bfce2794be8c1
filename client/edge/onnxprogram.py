"""A traced step as a program for ONNX Runtime, with its frozen weights in a file beside it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from client.edge.engine import output_names
from client.edge.program import BASE, PROGRAM
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from client.edge.trace import TracedStep

_INLINE = 256  # bytes; smaller constants are part of the program, not of the base


def write_onnx(traced: TracedStep, folder: Path, *, factors: list[str], quantization: str) -> None:
    """Write ``step.onnx`` and ``base.bin`` into a folder.

    Args:
        traced: one example's gradient.
        folder: an existing folder.
        factors: names of its factors, in order.
        quantization: of the frozen weights: ``"none"``, ``"int8"`` or ``"int4"``.

    Raises:
        UnsupportedModel: if there is no such program, or nothing in it that can be quantised.
    """
    program = _translated(traced, factors)
    if quantization != "none":
        from client.edge.nbits import quantised

        program = quantised(program, bits=8 if quantization == "int8" else 4)
    _save(program, folder)


def _translated(traced: TracedStep, factors: list[str]) -> Any:  # noqa: ANN401  (onnx_ir's model)
    """Translate a traced step."""
    with _quiet():
        exported = torch.export.export(traced.graph, traced.example, strict=False)
        program = torch.onnx.export(
            exported,
            traced.example,
            dynamo=True,
            verbose=False,
            optimize=True,
            input_names=["ids", "labels", *factors],
            output_names=output_names(traced.outputs),
        )
    if program is None:
        msg = "PyTorch made no program of the step."
        raise UnsupportedModel(msg)
    # Metadata of nodes hold the exporter's stack, with the paths of the machine that exported.
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    return ClearMetadataAndDocStringPass()(program.model).model


def _save(program: Any, folder: Path) -> None:  # noqa: ANN401  (onnx_ir's model)
    """Write the program, and its large constants into a file of their own."""
    import onnx_ir

    onnx_ir.save(program, folder / PROGRAM, external_data=BASE, size_threshold_bytes=_INLINE)
    if not (folder / BASE).exists():
        (folder / BASE).touch()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' advice off stderr."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels: Mapping[logging.Logger, int] = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
