"""The compression methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from shared.errors import InvalidValue
from shared.registry import suggestion
from simulations.compress.depth import LayerDrop
from simulations.compress.distilling import Distil
from simulations.compress.fitted import AWQ, GPTQ, SmoothQuant
from simulations.compress.protocol import Compressor
from simulations.compress.pruning import SPARSEGPT, TWO_OF_FOUR, WANDA
from simulations.compress.rounding import Nearest

METHODS: Mapping[str, Compressor] = MappingProxyType(
    {
        "nf4": Nearest("nf4", "4 bits, normal quantiles, to nearest (bitsandbytes)"),
        "int8": Nearest("int8", "8 bits a weight, to nearest (bitsandbytes)"),
        "torchao-int8": Nearest(
            "torchao-int8", "8 bits a weight, to nearest, as torchao stores it"
        ),
        "int4": Nearest("int4", "4 bits in groups of 32, to nearest"),
        "gptq": GPTQ(),
        "awq": AWQ(),
        "smoothquant": SmoothQuant(),
        "wanda": WANDA,
        "sparsegpt": SPARSEGPT,
        "2:4": TWO_OF_FOUR,
        "layer-drop": LayerDrop(),
        "distill": Distil(),
    }
)


def method(name: str) -> Compressor:
    """Return a method.

    Raises:
        InvalidValue: for an unknown name.
    """
    if name in METHODS:
        return METHODS[name]
    msg = f"method={name!r}, expected one of: {', '.join(METHODS)}."
    raise InvalidValue(msg, hint=suggestion(name, METHODS))
