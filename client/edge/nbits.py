"""Frozen weights in 8 or 4 bits inside an exported step, by ONNX Runtime's MatMulNBits.

Every product with a constant matrix is taken, forwards and backwards; the backward pass multiplies
by the transposed matrix, which is quantised on its own, so that the gradient is that of a model
whose two passes differ by the rounding. Embedding tables that are looked up stay in float32.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from shared.errors import MissingDependency, UnsupportedModel

_BLOCK = 32
_INTEGERS = 4


def quantised(program: Any, *, bits: int, integers: bool = False) -> Any:  # noqa: ANN401  (onnx_ir)
    """Return a program whose products with constant matrices hold their weights in a few bits.

    Args:
        program: an exported step in float32.
        bits: 8 or 4.
        integers: allow products of integers: each row's vectors are rounded to 8 bits, in the same
            blocks, where the processor has a kernel for it.

    Raises:
        MissingDependency: if ONNX Runtime is not installed.
        UnsupportedModel: if the program has no product with a constant matrix.
    """
    try:
        import onnx
        import onnx_ir
        import onnxruntime
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ImportError as error:
        msg = f"Quantising a step needs {error.name}, which is not installed."
        raise MissingDependency(msg, hint="pip install 'fedslm[export]'") from error
    with tempfile.TemporaryDirectory() as folder:
        plain, folded = Path(folder) / "plain.onnx", Path(folder) / "folded.onnx"
        onnx_ir.save(program, plain, external_data="plain.bin")
        options = onnxruntime.SessionOptions()
        # Only what does not depend on the machine: transposed constants become constants.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=bits,
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=_INTEGERS if integers else None,
        )
        quantizer.process()
    finally:
        logger.setLevel(level)
    changed = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in changed.graph.node):
        msg = "No product of this model has a constant matrix that can be quantised."
        raise UnsupportedModel(msg, hint="Export it with --quantization none.")
    return onnx_ir.from_proto(changed)
