"""Batches, and losses that never mix the examples of a batch.

The loss of a sequence is the mean over *its own* label tokens. The library's ``out.loss`` is a mean
over all tokens of the batch, which makes one example's gradient depend on the others, so that the
clip no longer bounds what one example can change (``tests/client/test_clipping.py`` shows it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from client.examples import IGNORED, Example
from shared.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples padded on the right to the longest of them.

    Attributes:
        ids: int64, shape ``(B, T)``.
        labels: int64, shape ``(B, T)``, -100 where no loss is wanted.
        attention_mask: int64, shape ``(B, T)``, 1 on real tokens and 0 on padding.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if self.ids.device == device:
            return self
        return Batch(
            ids=self.ids.to(device),
            labels=self.labels.to(device),
            attention_mask=self.attention_mask.to(device),
        )

    def row(self, index: int) -> Batch:
        """Return one example as a batch of one, without its padding."""
        length = int(self.attention_mask[index].sum())
        one = slice(index, index + 1)
        return Batch(
            ids=self.ids[one, :length],
            labels=self.labels[one, :length],
            attention_mask=self.attention_mask[one, :length],
        )


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad examples on the right to the longest of them.

    Args:
        examples: at least one; ids and labels of equal length.
        pad_id: any token id; padded positions carry no label and follow the text.

    Raises:
        InvalidValue: for no examples, or ids and labels of different shape.
    """
    if not examples or any(e.ids.shape != e.labels.shape or e.ids.ndim != 1 for e in examples):
        msg = "A batch needs at least one example, each with as many labels as ids."
        raise InvalidValue(msg)
    shape = (len(examples), max(e.ids.size for e in examples))
    ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, example in enumerate(examples):
        ids[row, : example.ids.size] = example.ids
        labels[row, : example.ids.size] = example.labels
        mask[row, : example.ids.size] = 1
    return Batch(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        attention_mask=torch.from_numpy(mask),
    )


def token_losses(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of every position and which positions count.

    Args:
        model: a causal language model.
        batch: padded on the right. No attention mask is passed: padding follows the text, so a
            causal model never looks at it from a position that counts.

    Returns:
        Losses in nats, float32, shape ``(B, T)``, 0 where there is no label; and a boolean mask of
        the positions that have one. Position t predicts label t + 1; the last predicts nothing.
    """
    targets = torch.full_like(batch.labels, IGNORED)
    targets[:, :-1] = batch.labels[:, 1:]
    logits = model(input_ids=batch.ids, use_cache=False).logits
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(targets.shape), targets != IGNORED


def per_sequence_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return each sequence's mean loss over its own label tokens.

    Guarantee:
        Element i and its gradient depend on row i alone.

    Args:
        model: a causal language model without layers that mix the batch.
        batch: padded on the right.

    Returns:
        Nats per token, shape ``(B,)``; 0 for a sequence without labels.
    """
    losses, counted = token_losses(model, batch)
    return losses.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
