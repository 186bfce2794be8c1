"""The precision of products with a frozen base, chosen by the scenario alone.

Never by the processor: one digest names one configuration, whoever computes.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

ComputeDtype = Literal["float32", "bfloat16"]
_DEFAULTS: MappingProxyType[str, ComputeDtype] = MappingProxyType({"nf4": "bfloat16"})


def default_compute_dtype(quantization: str) -> ComputeDtype:
    """Return the precision of products where a scenario names none.

    Args:
        quantization: how the base is stored.
    """
    return _DEFAULTS.get(quantization, "float32")
