"""Log-likelihoods of continuations, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shared.errors import AdapterCorrupt

_LOGITS_AT_ONCE = 1 << 24
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens, the last of which are scored.

    Attributes:
        ids: context and continuation; at least one of the context.
        scored: how many at the end are the continuation's; from 1 to ``len(ids) - 1``.
    """

    ids: tuple[int, ...]
    scored: int


def loglikelihoods(
    model: torch.nn.Module, rows: Sequence[Row], done: Callable[[int], None] = lambda count: None
) -> list[tuple[float, bool]]:
    """Return each continuation's log-likelihood in nats, and whether it is the likeliest one.

    Rows are padded on the right and no mask is passed: a causal model sees no padding from a
    position that counts. The sum is taken in float64 over float32 log-probabilities.

    Args:
        model: a causal language model of transformers, or PEFT's around one.
        rows: what to score.
        done: called with how many rows were scored since the last call.

    Raises:
        AdapterCorrupt: if the model gives numbers that are not finite.
    """
    found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
    with torch.inference_mode():
        for batch in _batches(rows, _vocabulary(model)):
            scores = _score(model, [rows[index] for index in batch])
            for index, value in zip(batch, scores, strict=True):
                found[index] = value
            done(len(batch))
    return found


def _score(model: Any, rows: Sequence[Row]) -> list[tuple[float, bool]]:  # noqa: ANN401
    """Score one batch."""
    longest = max(len(row.ids) for row in rows)
    device = next(model.parameters()).device
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
    logits = model(input_ids=ids.to(device), use_cache=False).logits
    found = []
    for place, row in enumerate(rows):
        start = len(row.ids) - row.scored
        steps = logits[place, start - 1 : len(row.ids) - 1].float().log_softmax(dim=-1)
        wanted = ids[place, start : len(row.ids)].to(device)
        picked = steps.gather(1, wanted.unsqueeze(1)).sum(dtype=torch.float64)
        if not bool(torch.isfinite(picked)):
            msg = "The model gives numbers that are not finite."
            raise AdapterCorrupt(msg, hint="The adapter has probably diverged.")
        greedy = bool((steps.argmax(dim=-1) == wanted).all())
        found.append((float(picked), greedy))
    return found


def _batches(rows: Sequence[Row], vocabulary: int) -> Iterator[list[int]]:
    """Yield indices of rows of similar length, with a bounded number of logits in each batch."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    batch: list[int] = []
    for index in order:
        size = (len(batch) + 1) * len(rows[index].ids) * vocabulary
        if batch and (size > _LOGITS_AT_ONCE or len(batch) == _ROWS_AT_ONCE):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _vocabulary(model: Any) -> int:  # noqa: ANN401
    """Return how many logits a position has."""
    return int(model.get_input_embeddings().weight.shape[0])
