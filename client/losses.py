"""Batches, and losses that never mix the examples of a batch.

The loss of a sequence is the mean over *its own* label tokens. The library's ``out.loss`` is a mean
over all tokens of the batch, which makes one example's gradient depend on the others, so that the
clip no longer bounds what one example can change (``tests/client/test_clipping.py`` shows it).

Logits are the largest tensor of a step with a large vocabulary. They are computed at the positions
that carry a label alone, and the way back writes the loss's gradient over them, so that there is
one such tensor where the library's loss makes three.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from client.classification import class_losses, is_classifier
from client.examples import IGNORED, Example
from shared.errors import InvalidValue, UnsupportedModel

# Logits that are worked on at once: on a CPU they stay in a core's own cache, and elsewhere it is
# the calls that cost.
_AT_ONCE = {"cpu": 1 << 17}
_AT_ONCE_ELSEWHERE = 1 << 24


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
        model: a causal language model, or a classifier, whose one loss stands at position 0.
        batch: padded on the right. No attention mask is passed: padding follows the text, so a
            causal model never looks at it from a position that counts.

    Returns:
        Losses in nats, float32, shape ``(B, T)``, 0 where there is no label; and a boolean mask of
        the positions that have one. Position t predicts label t + 1; the last predicts nothing. Of
        the losses one gradient can be taken, once.

    Raises:
        UnsupportedModel: if the model's output embedding is not applied position by position.
    """
    if is_classifier(model):
        return class_losses(model, batch.ids, batch.attention_mask, batch.labels)
    targets = torch.full_like(batch.labels, IGNORED)
    targets[:, :-1] = batch.labels[:, 1:]
    counted = targets != IGNORED
    positions = counted.flatten().nonzero().squeeze(1)
    logits = _logits_at(model, batch.ids, positions)
    of_each: torch.Tensor = _CrossEntropy.apply(logits, targets.flatten()[positions])  # type: ignore[no-untyped-call]
    losses = torch.zeros(counted.shape, dtype=torch.float32, device=of_each.device)
    return losses.masked_scatter(counted, of_each), counted


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


def _logits_at(model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the logits of some positions, ``(n, vocabulary)``.

    Args:
        model: a causal language model.
        ids: ``(B, T)``.
        positions: indices into the flattened ids, ``(n,)``.

    Raises:
        UnsupportedModel: if the model's output embedding is not applied position by position.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    calls = 0

    def choose(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.Tensor] | None:
        nonlocal calls
        calls += 1
        if len(inputs) != 1 or inputs[0].shape[:-1] != ids.shape:
            return None  # the logits then have another shape than is asked for below
        hidden: torch.Tensor = inputs[0].flatten(0, 1).index_select(0, positions)
        return (hidden.unsqueeze(0),)

    if isinstance(head, torch.nn.Module):
        with head.register_forward_pre_hook(choose):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        if calls == 1 and logits.shape[:-1] == (1, positions.numel()):
            return logits.flatten(0, 1)
    msg = "The model does not apply its output embedding position by position, once a pass."
    raise UnsupportedModel(msg)


class _CrossEntropy(torch.autograd.Function):
    """``-log softmax(logits)[target]`` of each row, a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """Return the losses, float32, ``(n,)``; the logits are kept as they are."""
        largest = logits.amax(dim=1, keepdim=True).float()
        sums = torch.empty_like(largest)
        for rows in _blocks(logits):
            sums[rows] = (logits[rows] - largest[rows]).exp_().sum(dim=1, keepdim=True)
        ctx.save_for_backward(logits, targets, largest, sums)
        picked = logits.gather(1, targets.unsqueeze(1)).float()
        return (sums.log() - (picked - largest)).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        """Return the gradient of the logits, written over them.

        Nothing else reads them any more: a second way back, or another function that kept them,
        finds out by torch's count of changes and is refused.
        """
        logits, targets, largest, sums = ctx.saved_tensors
        grad = grads[0].unsqueeze(1)
        weights = grad / sums
        for rows in _blocks(logits):
            # Itself in float32, a copy in less.
            block = logits[rows].float().sub_(largest[rows]).exp_().mul_(weights[rows])
            block.scatter_add_(1, targets[rows].unsqueeze(1), -grad[rows])
            if logits.dtype != torch.float32:
                logits[rows] = block
        return logits, None


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Yield slices of rows that hold a bounded number of logits, at least one row each."""
    rows, width = logits.shape
    size = max(_AT_ONCE.get(logits.device.type, _AT_ONCE_ELSEWHERE) // max(width, 1), 1)
    for start in range(0, rows, size):
        yield slice(start, start + size)
