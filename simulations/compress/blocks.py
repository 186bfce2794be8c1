"""A decoder as a row of blocks, and what flows into the linear layers of each.

Statistics are taken block after block, behind the blocks that were compressed already: what a layer
is fitted to is what it will see. To reach block i the model runs up to it and no further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from client.quantization import linear_modules
from shared.errors import UnsupportedModel
from simulations.compress.text import batches

_AT_ONCE = 8


class _Reached(Exception):
    """The block has run."""


@dataclass(slots=True)
class Inputs:
    """What was seen at the input of a linear layer, summed over ``count`` tokens.

    Attributes:
        gram: sum of ``x x^T``, float64, ``(d_in, d_in)``.
        total: sum of ``|x|``, ``(d_in,)``.
        peak: largest ``|x|``, ``(d_in,)``.
        count: number of tokens.
    """

    gram: torch.Tensor
    total: torch.Tensor
    peak: torch.Tensor
    count: int = 0

    @classmethod
    def empty(cls, width: int) -> Inputs:
        """Return the statistics of no token."""
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(torch.zeros((width, width), dtype=torch.float64), zeros, zeros.clone())

    def add(self, x: torch.Tensor) -> None:
        """Count inputs ``(..., d_in)``."""
        rows = x.detach().reshape(-1, x.shape[-1]).double().cpu()
        self.gram.addmm_(rows.t(), rows)
        sizes = rows.abs()
        self.total += sizes.sum(dim=0)
        self.peak = torch.maximum(self.peak, sizes.amax(dim=0))
        self.count += rows.shape[0]


def blocks_of(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """Return the dotted name and the list of a decoder's blocks.

    Raises:
        UnsupportedModel: if the model has no list of as many modules as it has layers.
    """
    config: Any = model.config
    layers = int(config.num_hidden_layers)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            return name, module
    msg = f"A model of type {config.model_type!r} has no list of {layers} blocks."
    raise UnsupportedModel(msg, hint="Expected one of the decoder families that fedslm trains.")


def matrix_of(module: torch.nn.Module) -> torch.Tensor:
    """Return a view ``(d_out, d_in)`` of a linear layer's weight, also of a ``Conv1D``."""
    weight: Any = module.weight
    view: torch.Tensor = weight.data
    return view if isinstance(module, torch.nn.Linear) else view.t()


def linears_of(model: torch.nn.Module, index: int) -> dict[str, torch.nn.Module]:
    """Return the linear layers of a block under their full names."""
    name, _ = blocks_of(model)
    prefix = f"{name}.{index}."
    return {full: module for full, module in linear_modules(model) if full.startswith(prefix)}


def inputs_of_block(model: torch.nn.Module, index: int, rows: torch.Tensor) -> dict[str, Inputs]:
    """Return what flows into every linear layer of a block.

    Args:
        model: runs up to the block.
        index: of the block.
        rows: public token ids, ``(count, length)``.
    """
    linears = linears_of(model, index)
    found = {name: Inputs.empty(matrix_of(module).shape[1]) for name, module in linears.items()}

    def record(name: str) -> Callable[[Any, Any], None]:
        return lambda _, args: found[name].add(args[0])

    with ExitStack() as stack:
        for name, module in linears.items():
            stack.callback(module.register_forward_pre_hook(record(name)).remove)
        _run_to(model, index, rows)
    return found


def states_around(
    model: torch.nn.Module, index: int, rows: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the hidden states before and after a block, ``(B, T, hidden)``, batch by batch."""
    _, blocks = blocks_of(model)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: Any, args: Any, output: Any) -> None:  # noqa: ANN401
        kept.append((args[0].detach(), _first(output).detach()))

    for part in batches(rows, _AT_ONCE):
        with ExitStack() as stack:
            stack.callback(blocks[index].register_forward_hook(keep).remove)
            _run_to(model, index, part)
        yield kept.pop()


def _run_to(model: torch.nn.Module, index: int, rows: torch.Tensor) -> None:
    """Run a model on rows, up to and with a block."""
    _, blocks = blocks_of(model)

    with _stopping_after(blocks[index]), torch.no_grad():
        for part in batches(rows, _AT_ONCE):
            try:
                model(input_ids=part)
            except _Reached:
                continue


@contextmanager
def _stopping_after(block: torch.nn.Module) -> Iterator[None]:
    """Leave the model's forward pass once a block has run."""

    def stop(*_: object) -> None:
        raise _Reached

    handle = block.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _first(output: Any) -> torch.Tensor:  # noqa: ANN401
    """Return the hidden states of a block's output, which may be a tuple."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states
