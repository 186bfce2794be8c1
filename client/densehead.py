"""The classification head: a linear layer that trains whole, with one gradient per example.

Of ``z = h W^T + b`` the gradient of example i is ``g_i h_i^T`` for W and ``g_i`` for b, where
``g_i`` is that of its logits. Nothing else in the model reads the head, so that is all of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from shared.errors import UnsupportedModel


class DenseHead:
    """One dense layer whose gradients are kept apart by example while recording.

    Attributes:
        module: the layer, ``(labels, d_in)`` with a bias.
        examples: number of examples whose gradients are kept apart; 0 leaves it to autograd.
        samples: what was kept, ``"weight"`` and ``"bias"`` to ``(examples, *parameter.shape)``.
    """

    __slots__ = ("examples", "module", "samples")

    def __init__(self, module: torch.nn.Linear) -> None:
        self.module = module
        self.examples = 0
        self.samples: dict[str, torch.Tensor] = {}

    def record(self, examples: int) -> None:
        """Keep gradients of a coming batch apart by example; 0 ends it. Forgets the last ones."""
        self.examples = examples
        self.samples = {}
        if examples:
            self.module.__dict__["forward"] = self._forward
        else:
            self.module.__dict__.pop("forward", None)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(examples, labels)``.

        Raises:
            UnsupportedModel: if the layer does not see one row for each example, or runs twice.
        """
        if x.dim() != 2 or x.shape[0] != self.examples or self.samples:
            msg = (
                f"The head sees an input of shape {tuple(x.shape)} for {self.examples} examples: "
                "its gradient cannot be told apart by example."
            )
            raise UnsupportedModel(msg, hint="Use clipper='microbatch'.")
        logits: torch.Tensor = _Recorded.apply(x, self.module.weight, self.module.bias, self)  # type: ignore[no-untyped-call]
        return logits


class _Recorded(torch.autograd.Function):
    """``x W^T + b`` that keeps the gradient of each row."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        head: DenseHead,
    ) -> torch.Tensor:
        """Return the logits."""
        ctx.save_for_backward(x, weight)
        ctx.head = head
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradient of ``x``; those of the parameters are kept by example."""
        x, weight = ctx.saved_tensors
        grad: torch.Tensor = grads[0]
        if ctx.needs_input_grad[1]:
            ctx.head.samples["weight"] = grad.unsqueeze(2) * x.unsqueeze(1)
        if ctx.needs_input_grad[2]:
            ctx.head.samples["bias"] = grad.clone()
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None, None
