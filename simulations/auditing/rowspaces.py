"""Where the inputs of a layer must lie, by the rows of its factors' gradients.

For ``y = W x + s B A x`` the rows of A's gradient lie in the span of the inputs ``x``, and those of
B's in the span of ``A x`` (Petrov et al., "DAGER: Exact Gradient Inversion for Large Language
Models", 2024, with LoRA). What of a candidate's input lies outside says that it was not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from client.adapter import AdaptedModel

_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowSpace:
    """Where the inputs of a layer must lie.

    Attributes:
        layer: name of the layer.
        basis: orthonormal columns, shape ``(width, k)``, with ``k < width``.
        through: what inputs are multiplied with first, ``(r, d_in)``; None for nothing.
    """

    layer: str
    basis: torch.Tensor
    through: torch.Tensor | None

    def misfit(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the share of each input that lies outside, shape of all but the last axis."""
        x = inputs if self.through is None else inputs @ self.through.T
        inside = (x @ self.basis).square().sum(dim=-1)
        outside: torch.Tensor = 1 - inside / x.square().sum(dim=-1).clamp(min=1e-12)
        return outside


def row_spaces(model: AdaptedModel, gradient: torch.Tensor) -> list[RowSpace]:
    """Return every layer's row space that leaves something out.

    Layers that are fed the same are told by what they are fed, and their rows are stacked.
    """
    factors = model.spec.unflatten(gradient.cpu().numpy(), model.kinds)
    start = model.factors()
    names = list(model.spec.layers)
    probe = torch.tensor([[2, 3, 4, 5]], device=model.device)
    with torch.no_grad(), inputs_of(model, set(names)) as inputs:
        model.peft_model(input_ids=probe, use_cache=False)
    found: list[RowSpace] = []
    for group in _alike(inputs, names):
        rows = [factors[f"{name}.lora_A.weight"] for name in group if "A" in model.kinds]
        basis = _basis(np.vstack(rows)) if rows else None
        if basis is not None:
            column = torch.from_numpy(basis).to(model.device)
            found.append(RowSpace(layer=group[0], basis=column, through=None))
            continue
        for name in group:
            basis = _basis(factors[f"{name}.lora_B.weight"]) if "B" in model.kinds else None
            if basis is not None:
                column = torch.from_numpy(basis).to(model.device)
                through = torch.from_numpy(start[f"{name}.lora_A.weight"]).to(model.device)
                found.append(RowSpace(layer=name, basis=column, through=through))
    return found


def _alike(inputs: dict[str, torch.Tensor], names: Sequence[str]) -> list[list[str]]:
    """Group layers that are fed the same."""
    groups: list[list[str]] = []
    for name in names:
        for group in groups:
            first = inputs[group[0]]
            if first.shape == inputs[name].shape and torch.equal(first, inputs[name]):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _basis(rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return an orthonormal basis of a row space as columns; None for nothing, or everything."""
    _, values, basis = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    if not values.any():
        return None
    rank = int(np.count_nonzero(values > _ROUNDING * values[0]))
    return basis[:rank].T.astype(np.float32) if rank < rows.shape[1] else None


def fed_by_tokens(model: AdaptedModel, names: set[str]) -> set[str]:
    """Return the layers whose input at a place depends on the token there alone."""
    ids = torch.tensor([[2, 3], [4, 3]], device=model.device)
    with torch.no_grad(), inputs_of(model, names) as inputs:
        model.peft_model(input_ids=ids, use_cache=False)
    return {
        name
        for name, seen in inputs.items()
        if torch.allclose(seen[0, 1], seen[1, 1], rtol=1e-4, atol=1e-5)
    }


@contextmanager
def inputs_of(model: AdaptedModel, names: set[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect what some layers are fed inside the ``with`` block."""
    modules = dict(model.peft_model.named_modules())
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, Any], None]:
        def hook(module: torch.nn.Module, arguments: Any) -> None:  # noqa: ANN401
            del module
            inputs[name] = arguments[0].detach()

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = modules[name].register_forward_pre_hook(keep(name))
            stack.callback(handle.remove)
        yield inputs
