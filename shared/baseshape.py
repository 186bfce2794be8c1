"""The shape of a base model: what costs depend on, and nothing of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType

from shared.lora import AdapterSpec

FLOAT = 4
"""Bytes of a float32."""

_INT4_GROUP = 32
_INT4_GROUP_BYTES = 18  # 16 of codes and a float16 scale
_NF4_BLOCK = 64
_NF4_OUTER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """What a base model's ``config.json`` says of its size; public.

    Attributes:
        linears: ``(d_out, d_in)`` of every linear layer but the output embedding.
        other_parameters: embeddings, norms, biases, and an output embedding that is not tied.
        layers: number of blocks.
        hidden: width of the model.
        attention: width of all query heads together.
        key_value: width of all key heads together.
        inner: width inside a feed-forward network.
        vocabulary: number of tokens that are told apart.
    """

    linears: tuple[tuple[int, int], ...]
    other_parameters: int
    layers: int
    hidden: int
    attention: int
    key_value: int
    inner: int
    vocabulary: int

    @property
    def linear_weights(self) -> int:
        """Number of weights in linear layers."""
        return sum(rows * columns for rows, columns in self.linears)

    @property
    def largest_linear(self) -> int:
        """Number of weights of the largest linear layer."""
        return max((rows * columns for rows, columns in self.linears), default=0)

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.linear_weights + self.other_parameters


def stored_bytes(shape: BaseShape, quantization: str) -> int:
    """Return the bytes of a base as :mod:`client.quantization` holds it, without any cache.

    Embeddings, norms and the output embedding stay in float32.

    Args:
        shape: of the base.
        quantization: ``"none"``, ``"int8"``, ``"torchao-int8"``, ``"int4"`` or ``"nf4"``.
    """
    count = _LAYER_BYTES[quantization]
    return sum(count(rows, columns) for rows, columns in shape.linears) + (
        FLOAT * shape.other_parameters
    )


def with_rank(spec: AdapterSpec, r: int) -> AdapterSpec:
    """Return the same adapter at another rank and the same scale; head and router stay whole.

    What has no rank stays what it is.
    """
    if spec.method is not None:
        return spec
    factors = tuple(
        replace(f, shape=(r, f.shape[1]) if f.kind == "A" else (f.shape[0], r))
        if f.low_rank or not (spec.head or spec.mixture)
        else f
        for f in spec.factors
    )
    ratio = r / spec.r
    alpha = spec.lora_alpha * (math.sqrt(ratio) if spec.rslora else ratio)
    return replace(spec, factors=factors, r=r, lora_alpha=alpha)


def _float(rows: int, columns: int) -> int:
    return FLOAT * rows * columns


def _int8(rows: int, columns: int) -> int:
    return rows * columns + FLOAT * rows


def _int4(rows: int, columns: int) -> int:
    return rows * -(-columns // _INT4_GROUP) * _INT4_GROUP_BYTES


def _nf4(rows: int, columns: int) -> int:
    """Two weights a byte, a byte for each block's scale, and a float for 256 of those."""
    blocks = -(-rows * columns // _NF4_BLOCK)
    return -(-rows * columns // 2) + blocks + FLOAT * -(-blocks // _NF4_OUTER)


_LAYER_BYTES = MappingProxyType(
    {"none": _float, "int8": _int8, "torchao-int8": _int8, "int4": _int4, "nf4": _nf4}
)

QUANTIZATIONS: tuple[str, ...] = tuple(_LAYER_BYTES)

GEMMA_270M = BaseShape(
    linears=18
    * (
        (1024, 640),
        (256, 640),
        (256, 640),
        (640, 1024),
        (2048, 640),
        (2048, 640),
        (640, 2048),
    ),
    other_parameters=262_144 * 640 + 18 * (4 * 640 + 2 * 256) + 640,
    layers=18,
    hidden=640,
    attention=1024,
    key_value=256,
    inner=2048,
    vocabulary=262_144,
)
"""Gemma-3 270M, on which phones and a Jetson Nano were timed (see :mod:`shared.devices`)."""
