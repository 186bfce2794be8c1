"""Logits and losses of a model that gives each text one of some labels.

A batch keeps a text's class where it keeps a text's first label token, so that batches, clipping
and training know no difference: the loss of example i is the cross-entropy of its own row, and
depends on no other row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from client.examples import IGNORED

PROBLEM = "single_label_classification"


def is_classifier(model: torch.nn.Module) -> bool:
    """Tell whether a model gives one row of logits for each text."""
    config = getattr(model, "config", None)
    return getattr(config, "problem_type", None) == PROBLEM


def class_logits(
    model: torch.nn.Module, ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return the logits of each text, ``(B, labels)``; padding is masked."""
    found: Any = model(input_ids=ids, attention_mask=attention_mask)
    logits: torch.Tensor = found.logits
    return logits


def class_losses(
    model: torch.nn.Module, ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what :func:`client.losses.token_losses` returns, with one loss for each text.

    Guarantee:
        Row i and its gradient depend on row i alone: the model is in evaluation mode but for the
        adapter, and :func:`client.model.load_base` refuses layers that mix a batch.

    Returns:
        Cross-entropy in nats at position 0 and 0 elsewhere, ``(B, T)``; and where it stands.
    """
    counted = labels != IGNORED
    of_each = F.cross_entropy(
        class_logits(model, ids, attention_mask).float(),
        labels[:, 0],
        reduction="none",
        ignore_index=IGNORED,
    )
    losses = torch.zeros(counted.shape, dtype=torch.float32, device=of_each.device)
    return torch.cat([of_each.unsqueeze(1), losses[:, 1:]], dim=1), counted
