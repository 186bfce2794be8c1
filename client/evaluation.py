"""Losses without training: the held-out loss, and one loss per sequence for audits.

What these functions return depends on private text. Under client-level privacy it stays on the
device, or an event pays for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from client.cohortbatches import by_length
from client.examples import Example
from client.losses import collate, token_losses
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
    sums, counts = _sums_and_counts(model, examples, _by_count(examples, batch_size))
    tokens = int(counts.sum())
    if not tokens > 0:
        msg = f"None of {len(examples)} held-out examples has a token to predict."
        raise NoUsableText(msg, hint="Expected at least one example of two tokens or more.")
    return EvalResult(loss=float(sums.sum() / tokens), tokens=tokens)


def evaluate_group(
    model: AdaptedModel, clients: Sequence[Sequence[Example]], *, tokens: int
) -> list[EvalResult]:
    """Return each client's mean loss per label token, with all their examples in one pass.

    Args:
        model: an adapted model.
        clients: the held-out examples of each.
        tokens: how many go through the model at once, padding included; does not change the result
            beyond rounding.

    Returns:
        What :func:`evaluate` returns for each; a NaN over 0 tokens where it raises.
    """
    examples = [example for client in clients for example in client]
    sums, counts = _sums_and_counts(model, examples, by_length(examples, tokens=tokens))
    results, start = [], 0
    for client in clients:
        rows = slice(start, start + len(client))
        labelled = int(counts[rows].sum())
        loss = float(sums[rows].sum() / labelled) if labelled > 0 else math.nan
        results.append(EvalResult(loss=loss, tokens=labelled))
        start += len(client)
    return results


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
    sums, counts = _sums_and_counts(model, examples, _by_count(examples, batch_size))
    return sums if reduction == "sum" else sums / np.maximum(counts, 1)


def _sums_and_counts(
    model: AdaptedModel, examples: Sequence[Example], batches: Iterable[NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return summed loss and number of label tokens per example, in the order given."""
    pad_id = int(model.base.tokenizer.pad_token_id or 0)
    sums = np.zeros(len(examples), dtype=np.float64)
    counts = np.zeros(len(examples), dtype=np.int64)
    with torch.no_grad():
        for rows in batches:
            batch = collate([examples[row] for row in rows], pad_id).to(model.device)
            losses, labelled = token_losses(model.peft_model, batch)
            sums[rows] = losses.sum(dim=1, dtype=torch.float64).cpu().numpy()
            counts[rows] = labelled.sum(dim=1).cpu().numpy()
    return sums, counts


def _by_count(examples: Sequence[Example], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of batches of similar length, which wastes the least padding."""
    positive_integer(batch_size=batch_size)
    order = np.argsort([example.ids.size for example in examples], kind="stable")
    for start in range(0, len(examples), batch_size):
        yield order[start : start + batch_size]
