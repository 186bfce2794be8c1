"""Files and inputs of an ONNX export, for those who write it and those who run it without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.lora import AdapterSpec, Factors, plain_name

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
ADAPTER = "adapter.onnx_adapter"
TOKENIZER = "tokenizer.json"
IDS = "input_ids"
LOGITS = "logits"


def factor_inputs(
    factors: Factors, scale: float
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Return what the graph takes for an adapter: A, and B times the scale, by input."""
    return {
        plain_name(name): np.ascontiguousarray(
            values * np.float32(scale if ".lora_B." in name else 1.0)
        )
        for name, values in factors.items()
    }


def factor_names(spec: AdapterSpec) -> list[str]:
    """Return the graph's inputs for factors, A and B of a layer one after the other."""
    return [
        plain_name(factor.name).replace(".lora_A.", f".lora_{kind}.")
        for factor in spec.of_kind("A")
        for kind in "AB"
    ]


def cache_names(blocks: int, prefix: str = "", *, scaled: bool = False) -> list[str]:
    """Return the names of the caches, keys and values of a block one after the other.

    Args:
        blocks: of the model.
        prefix: "past_" for inputs.
        scaled: codes in 8 bits, with their scales behind them.
    """
    kinds = ("key", "key_scale", "value", "value_scale") if scaled else ("key", "value")
    return [f"{prefix}{kind}_{block}" for block in range(blocks) for kind in kinds]
