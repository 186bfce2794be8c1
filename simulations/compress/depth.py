"""Fewer blocks: those that change their input least are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shared.errors import InvalidValue
from simulations.compress.blocks import blocks_of, states_around
from simulations.compress.protocol import Compressed, Work


@dataclass(frozen=True, slots=True)
class LayerDrop:
    """Drops whole blocks by their influence (ShortGPT, arXiv 2403.03853)."""

    about: str = "the blocks dropped that turn their input least"
    calibrates: bool = True
    reads: tuple[str, ...] = ("rows", "length", "layers")

    def compress(self, work: Work) -> Compressed:
        """Drop blocks; what stays is as it was."""
        model = work.base.model
        scores = influences(model, work.calibration())
        kept = blocks_to_keep(scores, work.settings.layers)
        keep_blocks(model, kept)
        rounded = [round(score, 6) for score in scores]
        return Compressed(
            model=model, storage="none", parameters={"kept": kept, "influence": rounded}
        )


def influences(model: torch.nn.Module, rows: torch.Tensor) -> list[float]:
    """Return each block's influence: the mean of ``1 - cos(in, out)`` over tokens."""
    _, blocks = blocks_of(model)
    found = []
    for index in range(len(blocks)):
        total, count = 0.0, 0
        for before, after in states_around(model, index, rows):
            cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            total += float((1 - cosine).sum())
            count += cosine.numel()
        found.append(total / count)
    return found


def blocks_to_keep(scores: Sequence[float], layers: int | None) -> list[int]:
    """Return the blocks of the largest influence, in their order.

    Args:
        scores: of each block.
        layers: how many stay; None is three quarters.

    Raises:
        InvalidValue: unless at least one stays and one goes.
    """
    wanted = max(1, len(scores) * 3 // 4) if layers is None else layers
    if not 1 <= wanted < len(scores):
        msg = f"layers={wanted}, expected 1 to {len(scores) - 1} of {len(scores)} blocks."
        raise InvalidValue(msg)
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return sorted(order[:wanted])


def keep_blocks(model: torch.nn.Module, kept: Sequence[int]) -> None:
    """Keep some of a model's blocks, in place, with a configuration that says so."""
    name, blocks = blocks_of(model)
    parent, _, leaf = name.rpartition(".")
    chosen = torch.nn.ModuleList([blocks[index] for index in kept])
    setattr(model.get_submodule(parent), leaf, chosen)
    for place, block in enumerate(chosen):
        inner: Iterator[Any] = block.modules()
        for module in inner:
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    config: Any = model.config
    types = getattr(config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[index] for index in kept]
    config.num_hidden_layers = len(kept)
