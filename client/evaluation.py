"""Losses without training: the held-out loss, and one loss per sequence for audits.

What these functions return depends on private text. Under client-level privacy it stays on the
device, or an event pays for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from client.examples import Example
from client.losses import Batch, collate, token_losses
from shared.errors import NoUsableText
from shared.validate import positive_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.adapter import AdaptedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """A held-out loss.

    Attributes:
        loss: mean over label tokens, in nats per token.
        tokens: number of label tokens that it is the mean of.
    """

    loss: float
    tokens: int


def evaluate(model: AdaptedModel, examples: Sequence[Example], *, batch_size: int) -> EvalResult:
    """Return the mean loss per label token over examples.

    Args:
        model: an adapted model; inside ``model.disabled()`` it is the base.
        examples: held-out examples, in any order.
        batch_size: how many go through the model at once; does not change the result beyond
            rounding.

    Raises:
        NoUsableText: if no example has a label.
    """
    sums, counts = _sums_and_counts(model, examples, batch_size)
    tokens = int(counts.sum())
    if not tokens > 0:
        msg = f"None of {len(examples)} held-out examples has a token to predict."
        raise NoUsableText(msg, hint="Expected at least one example of two tokens or more.")
    return EvalResult(loss=float(sums.sum() / tokens), tokens=tokens)


def sequence_losses(
    model: AdaptedModel,
    examples: Sequence[Example],
    *,
    batch_size: int,
    reduction: Literal["sum", "mean"] = "sum",
) -> NDArray[np.float64]:
    """Return one loss per example, in nats.

    Args:
        model: an adapted model; inside ``model.disabled()`` it is the base.
        examples: what to score.
        batch_size: how many go through the model at once.
        reduction: ``"sum"`` over label tokens (minus the log-likelihood), or their ``"mean"``.

    Returns:
        Shape ``(len(examples),)`` in the order given; 0 for an example without labels.
    """
    sums, counts = _sums_and_counts(model, examples, batch_size)
    return sums if reduction == "sum" else sums / np.maximum(counts, 1)


def _sums_and_counts(
    model: AdaptedModel, examples: Sequence[Example], batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return summed loss and number of label tokens per example, in the order given."""
    positive_integer(batch_size=batch_size)
    sums = np.zeros(len(examples), dtype=np.float64)
    counts = np.zeros(len(examples), dtype=np.int64)
    with torch.no_grad():
        for rows, batch in _batches(model, examples, batch_size):
            losses, labelled = token_losses(model.peft_model, batch)
            sums[rows] = losses.sum(dim=1, dtype=torch.float64).cpu().numpy()
            counts[rows] = labelled.sum(dim=1).cpu().numpy()
    return sums, counts


def _batches(
    model: AdaptedModel, examples: Sequence[Example], batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield batches of similar length, which wastes the least padding, with their positions."""
    pad_id = model.base.tokenizer.pad_token_id or 0
    order = np.argsort([example.ids.size for example in examples], kind="stable")
    for start in range(0, len(examples), batch_size):
        rows = order[start : start + batch_size]
        yield rows, collate([examples[row] for row in rows], int(pad_id)).to(model.device)
