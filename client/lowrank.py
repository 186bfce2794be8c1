"""An adapted linear layer in one differentiable step, with or without one gradient per example.

PEFT computes ``x W^T + s (x A^T) B^T``, which autograd differentiates product by product. Here the
layer is ``x (W + s B A)^T``: forwards one product of full size, backwards one more and the thin
ones that the factors' gradients need. ``W + s B A`` lives for one product and is made again in the
backward pass, so a quantised base stays as small as it is stored. With dropout on the adapter's
input there is no such sum, and the two thin products are taken instead.

The same function can keep ``G_i``, the factors' gradient of each example i, in place of their sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from client.quantization import stored_weight
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from peft import PeftModel


class LowRankLayer:
    """One LoRA layer of a PEFT model, computed by this module instead of PEFT's forward.

    Attributes:
        a: the factor A, ``(r, d_in)``.
        b: the factor B, ``(d_out, r)``.
        examples: number of examples whose gradients are kept apart; 0 sums them as autograd does.
        samples: what was kept, ``"A"`` and ``"B"`` to ``(examples, *factor.shape)``.
    """

    __slots__ = ("_base", "_dropout", "_module", "_scale", "a", "b", "examples", "samples")

    def __init__(self, module: Any) -> None:  # noqa: ANN401  (PEFT has no types)
        self._module = module
        self._base: torch.nn.Module = module.base_layer
        self._dropout: torch.nn.Module = module.lora_dropout["default"]
        self._scale = float(module.scaling["default"])
        self.a: torch.nn.Parameter = module.lora_A["default"].weight
        self.b: torch.nn.Parameter = module.lora_B["default"].weight
        self.examples = 0
        self.samples: dict[str, torch.Tensor] = {}

    def attach(self) -> None:
        """Compute the layer here."""
        self._module.forward = self.forward

    def detach(self) -> None:
        """Give the layer PEFT's own forward back."""
        self._module.__dict__.pop("forward", None)

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
        if self._module.disable_adapters or self._module.merged:
            output: torch.Tensor = self._base(x)
            return output
        if self.examples and not (x.dim() >= 2 and x.shape[0] == self.examples):
            msg = (
                f"A layer sees an input of shape {tuple(x.shape)} for {self.examples} examples: "
                "its gradient cannot be told apart by example."
            )
            raise UnsupportedModel(msg, hint="Use clipper='microbatch'.")
        if self._dropout.training and not isinstance(self._dropout, torch.nn.Identity):
            plain: torch.Tensor = self._base(x)
            thin: torch.Tensor = _Thin.apply(self._dropout(x), self.a, self.b, self)  # type: ignore[no-untyped-call]
            return plain + thin
        product: torch.Tensor = _Summed.apply(x, self.a, self.b, self)  # type: ignore[no-untyped-call]
        return product

    def summed(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return ``W + s B A`` of shape ``(d_out, d_in)``, and the bias."""
        weight, bias = stored_weight(self._base)
        with torch.no_grad():
            return torch.addmm(weight, self.b, self.a, alpha=self._scale), bias

    def factor_gradients(
        self,
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        grad: torch.Tensor,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients of A and B, or keep them by example and return None.

        ``G_B = s sum_t g_t (A x_t)^T`` and ``G_A = s sum_t (B^T g_t) x_t^T``; the sum over t runs
        over the positions of one example, or of all.
        """
        rows = max(self.examples, 1)
        x = x.reshape(rows, -1, x.shape[-1])
        grad = grad.reshape(rows, -1, grad.shape[-1])
        gradients: dict[str, torch.Tensor] = {}
        if ctx.needs_input_grad[1]:
            gradients["A"] = torch.bmm((grad @ self.b).mul_(self._scale).transpose(1, 2), x)
        if ctx.needs_input_grad[2]:
            gradients["B"] = torch.bmm(grad.transpose(1, 2), (x @ self.a.t()).mul_(self._scale))
        if not self.examples:
            return _only(gradients.get("A")), _only(gradients.get("B"))
        for kind, gradient in gradients.items():
            # A layer that runs twice in one pass adds up, as autograd would.
            earlier = self.samples.get(kind)
            self.samples[kind] = gradient if earlier is None else earlier + gradient
        return None, None

    def thin(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``s (x A^T) B^T``."""
        return F.linear(F.linear(x, self.a).mul_(self._scale), self.b)

    def thin_input_gradient(self, grad: torch.Tensor) -> torch.Tensor:
        """Return ``s (g B) A``."""
        return (grad @ self.b).mul_(self._scale) @ self.a


def low_rank_layers(peft_model: PeftModel) -> list[LowRankLayer]:
    """Return every LoRA layer of a PEFT model, attached."""
    from peft.tuners.lora import LoraLayer

    layers = [LowRankLayer(m) for m in peft_model.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        layer.attach()
    return layers


class _Summed(torch.autograd.Function):
    """``x (W + s B A)^T + b``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        layer: LowRankLayer,
    ) -> torch.Tensor:
        """Return the product; only ``x`` and the factors are kept for the way back."""
        ctx.save_for_backward(x, a, b)
        ctx.layer = layer
        weight, bias = layer.summed()
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of ``x`` and the factors."""
        x, _, _ = ctx.saved_tensors
        layer: LowRankLayer = ctx.layer
        of_x = grads[0] @ layer.summed()[0] if ctx.needs_input_grad[0] else None
        return of_x, *layer.factor_gradients(ctx, x, grads[0]), None


class _Thin(torch.autograd.Function):
    """``s (x A^T) B^T`` alone, for an input that dropout has thinned out."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        layer: LowRankLayer,
    ) -> torch.Tensor:
        """Return the two thin products."""
        ctx.save_for_backward(x, a, b)
        ctx.layer = layer
        return layer.thin(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of ``x`` and the factors."""
        x, _, _ = ctx.saved_tensors
        layer: LowRankLayer = ctx.layer
        of_x = layer.thin_input_gradient(grads[0]) if ctx.needs_input_grad[0] else None
        return of_x, *layer.factor_gradients(ctx, x, grads[0]), None


def _only(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """Drop the leading dimension of one."""
    return None if gradient is None else gradient[0]
