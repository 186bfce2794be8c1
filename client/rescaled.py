"""Layers whose output, or input, a trained vector rescales (IA3), with one gradient per example.

Of ``y = l * v`` the gradient of example i is the sum over its places of ``g * v``, where ``g`` is
that of ``y``: it depends on that text alone, and keeping it apart costs as much as the sum over the
batch. Works on quantised bases and under gradient checkpointing, as :mod:`client.lowrank` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from client.lean import without_quantizers
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from peft import PeftModel


class RescaledLayer:
    """One IA3 layer of a PEFT model, computed by this module instead of PEFT's forward.

    Attributes:
        module: PEFT's layer.
        vector: the trained ``l``, ``(1, d_in)`` if the input is rescaled and else ``(d_out, 1)``.
        examples: number of examples whose gradients are kept apart; 0 leaves them to autograd.
        samples: what was kept, ``"l"`` to ``(examples, *vector.shape)``.
    """

    __slots__ = ("_base", "_inner", "examples", "module", "samples", "vector")

    def __init__(self, module: Any) -> None:  # noqa: ANN401  (PEFT has no types)
        self.module = module
        self._base: torch.nn.Module = module.base_layer
        self._inner = bool(module.is_feedforward)
        self.vector: torch.nn.Parameter = module.ia3_l["default"]
        self.examples = 0
        self.samples: dict[str, torch.Tensor] = {}

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What trains, by the name it has in :attr:`samples`."""
        return {"l": self.vector}

    def attach(self) -> None:
        """Compute the layer here."""
        self.module.forward = self.forward

    def detach(self) -> None:
        """Give the layer PEFT's own forward back."""
        self.module.__dict__.pop("forward", None)

    def record(self, examples: int) -> None:
        """Keep gradients of a coming batch apart by example; 0 ends it. Forgets the last ones."""
        self.examples = examples
        self.samples = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output.

        Args:
            x: ``(..., d_in)``; while recording, the first dimension is the example.

        Raises:
            UnsupportedModel: if examples cannot be told apart while recording.
        """
        if self.module.disable_adapters:
            output: torch.Tensor = self._base(x)
            return output
        if self._inner:
            output = self._base(self._rescaled(x))
            return output
        return self._rescaled(self._base(x))

    def keep(self, of_each: torch.Tensor) -> None:
        """Keep the vector's gradient by example, ``(examples, d)``."""
        gradient = of_each.view(self.examples, *self.vector.shape)
        # A layer that runs twice in one pass adds up, as autograd would.
        earlier = self.samples.get("l")
        self.samples["l"] = gradient if earlier is None else earlier + gradient

    def _rescaled(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``l * values``, in the precision of the values."""
        if not self.examples:
            return (values * self.vector.flatten()).to(values.dtype)
        if not (values.dim() >= 2 and values.shape[0] == self.examples):
            msg = (
                f"A layer sees values of shape {tuple(values.shape)} for {self.examples} examples: "
                "its gradient cannot be told apart by example."
            )
            raise UnsupportedModel(msg, hint="Use clipper='microbatch'.")
        found: torch.Tensor = _Recorded.apply(values, self.vector, self)  # type: ignore[no-untyped-call]
        return found


def rescaled_layers(peft_model: PeftModel) -> list[RescaledLayer]:
    """Return every IA3 layer of a PEFT model, attached."""
    with without_quantizers():
        from peft.tuners.ia3 import IA3Layer

    layers = [RescaledLayer(m) for m in peft_model.modules() if isinstance(m, IA3Layer)]
    for layer in layers:
        layer.attach()
    return layers


class _Recorded(torch.autograd.Function):
    """``l * v`` that keeps the gradient of ``l`` by example."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        values: torch.Tensor,
        vector: torch.Tensor,
        layer: RescaledLayer,
    ) -> torch.Tensor:
        """Return the product."""
        ctx.save_for_backward(values, vector)
        ctx.layer = layer
        return (values * vector.flatten()).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradient of the values; that of the vector is kept."""
        values, vector = ctx.saved_tensors
        grad: torch.Tensor = grads[0]
        if ctx.needs_input_grad[1]:
            by_place = (grad.float() * values.float()).view(grad.shape[0], -1, grad.shape[-1])
            ctx.layer.keep(by_place.sum(dim=1))
        of_values = None
        if ctx.needs_input_grad[0]:
            of_values = (grad * vector.flatten()).to(values.dtype)
        return of_values, None, None
