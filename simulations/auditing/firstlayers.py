"""The adapted layers of the first block, and what they are fed, found by looking.

Whatever the family of the model: a layer is in the first block, as far as the audit is concerned,
if what it is fed at a position depends on the token there and on nothing before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from server.audit.protocol import Floats
from shared.errors import AuditError

if TYPE_CHECKING:
    from client.adapter import AdaptedModel

_CHUNK = 4096
_CLOSE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Adapted layers that are fed the same, each named as its factors are, without the ending."""

    layers: tuple[str, ...]


def first_layers(model: AdaptedModel) -> tuple[tuple[Group, ...], bool]:
    """Return the adapted layers that are fed with embeddings alone, and whether position counts.

    Two texts that differ in their first token alone are read; a layer that is fed the same at the
    second position in both knows nothing of the first. The same token at the first position of a
    third text says whether the position is known.

    Raises:
        AuditError: if there is no such layer.
    """
    both = _fed_with(model, torch.tensor([[2, 3], [4, 3]]))
    alone = _fed_with(model, torch.tensor([[3, 4]]))
    groups: list[list[str]] = []
    moving = False
    for layer, seen in both.items():
        if not _close(seen[0, 1], seen[1, 1]):
            continue
        moving = moving or not _close(seen[0, 1], alone[layer][0, 0])
        for known in groups:
            first = both[known[0]]
            if first.shape == seen.shape and torch.equal(first, seen):
                known.append(layer)
                break
        else:
            groups.append([layer])
    if not groups:
        msg = "no adapted layer is fed with embeddings alone, expected one in the first block."
        raise AuditError(msg, hint="Adapters on attention inputs (q_proj, k_proj, v_proj) are.")
    return tuple(Group(layers=tuple(layers)) for layers in groups), moving


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two inputs differ by rounding alone."""
    return float((one - other).norm()) <= _CLOSE * float(one.norm())


def _fed_with(model: AdaptedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what each adapted layer is fed for some texts, by the layer's name."""
    modules = dict(model.peft_model.named_modules())
    names = list(model.spec.layers)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, Any], None]:
        def hook(module: torch.nn.Module, arguments: Any) -> None:  # noqa: ANN401
            del module
            seen[name] = arguments[0].detach().float().cpu()

        return hook

    handles = [modules[name].register_forward_pre_hook(keep(name)) for name in names]
    try:
        with torch.no_grad(), model.disabled():
            model.peft_model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def inputs_alone(model: AdaptedModel, layer: str, vocabulary: int, position: int) -> Floats:
    """Return what a layer is fed for every token alone at a position: ``(vocabulary, d_in)``."""
    module = dict(model.peft_model.named_modules())[layer]
    pieces: list[Floats] = []

    def hook(module: torch.nn.Module, arguments: Any) -> None:  # noqa: ANN401
        del module
        pieces.append(arguments[0][:, 0].detach().double().cpu().numpy())
        raise _Seen

    handle = module.register_forward_pre_hook(hook)
    try:
        for start in range(0, vocabulary, _CHUNK):
            ids = torch.arange(start, min(start + _CHUNK, vocabulary), device=model.device)[:, None]
            where = torch.full_like(ids, position)
            with torch.no_grad():
                try:
                    model.peft_model(input_ids=ids, position_ids=where, use_cache=False)
                except _Seen:
                    continue
    finally:
        handle.remove()
    return np.concatenate(pieces)


@contextmanager
def read_ids(model: AdaptedModel) -> Iterator[list[NDArray[np.int64]]]:
    """Collect the rows of token ids that the model is fed inside the ``with`` block."""
    rows: list[NDArray[np.int64]] = []

    def hook(module: torch.nn.Module, arguments: Any) -> None:  # noqa: ANN401
        del module
        rows.extend(np.asarray(row, dtype=np.int64) for row in arguments[0].cpu().numpy())

    embeddings: Any = model.base.model.get_input_embeddings()
    handle = embeddings.register_forward_pre_hook(hook)
    try:
        yield rows
    finally:
        handle.remove()


class _Seen(Exception):
    """Raised inside a forward pass once what was wanted has been seen."""
