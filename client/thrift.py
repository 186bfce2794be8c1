"""How a device trains in little memory: its own choice, whatever the server's scenario says.

The ``performance`` section of a scenario changes speed and memory and no guarantee, and it is not
part of the digest that binds a device to a scenario. On a device it is therefore the device's: a
server's default for its own machine would take five gigabytes for a small model here. How many
examples go through the model at once, and whether activations are kept or made again, gives the
same update.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.config import RunConfig
from shared.configperformance import PerformanceSection

ROOM = 256 << 20
"""Bytes that activations and logits of one batch may take, by estimate."""

_FLOAT = 4
_LOGIT_COPIES = 4  # as they are, as log-probabilities, and the gradients of both
_WIDE = 8  # tensors as wide as the model that a block keeps
_INNER = 4
_ATTENTION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Thrift:
    """How to train.

    Attributes:
        performance: in place of the scenario's section.
        checkpointing: whether activations are made again in the backward pass.
    """

    performance: PerformanceSection
    checkpointing: bool


def thrift_for(config: RunConfig, model: Mapping[str, Any], *, cuda: bool) -> Thrift:
    """Return how a device trains a model.

    Args:
        config: the scenario.
        model: the base model's ``config.json``; of an unknown form the worst is assumed.
        cuda: whether the device has a usable CUDA device.

    Returns:
        A batch that keeps within :data:`ROOM`, of one example at least; a base that is stored in
        few bits stays so.
    """
    said = config.performance
    kept, again, logits = _estimates(model, config.data.max_length)
    checkpointing = not kept + logits <= ROOM
    example = logits + (again if checkpointing else kept)
    batch = max(1, min(said.physical_batch, int(ROOM / example))) if example > 0 else 1
    changes = {
        "device": said.device if cuda else "cpu",
        "physical_batch": batch,
        "cache_dequantized": False,
        # The one engine that works whether activations are kept or not, on every layer.
        "clipper": "fused" if checkpointing else said.clipper,
    }
    return Thrift(performance=said.model_copy(update=changes), checkpointing=checkpointing)


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return a base model's ``config.json``; empty where it cannot be read, which loading says."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _estimates(model: Mapping[str, Any], length: int) -> tuple[float, float, float]:
    """Return bytes for one example: activations kept, the same made again, logits."""
    width = _first(model, "hidden_size", "n_embd", "d_model")
    layers = _first(model, "num_hidden_layers", "n_layer")
    heads = _first(model, "num_attention_heads", "n_head")
    inner = _first(model, "intermediate_size", "n_inner") or 4 * width
    words = _first(model, "vocab_size")
    if not (width and layers and heads and words):
        return float("inf"), ROOM, 0.0
    block = _FLOAT * length * (_WIDE * width + _INNER * inner + _ATTENTION * heads * length)
    again = layers * _FLOAT * length * width + block
    return float(layers * block), float(again), float(_LOGIT_COPIES * _FLOAT * length * words)


def _first(model: Mapping[str, Any], *names: str) -> int:
    """Return the first of several settings that is a positive integer, or 0."""
    values = (model.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), 0)
