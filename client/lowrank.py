"""An adapted linear layer in one differentiable step, with or without one gradient per example.

PEFT computes ``x W^T + s (x A^T) B^T``, which autograd differentiates product by product, keeping
what each of them needs. Here the layer is one function that keeps its input and ``s A x^T``, each
only if a factor that trains asks for it, and computes in one of two ways:

- **thin**: one product of full size, and the thin one added in place onto its result.
- **summed**: ``x (W + s B A)^T``. ``W + s B A`` lives for one product and is made again in the
  backward pass, so a quantised base stays as small as it is stored.

Adding the thin product costs ``r`` operations for each of ``rows * d_out`` results, and making the
sum costs ``r`` for each of ``d_in * d_out`` weights: forwards it is thin for up to ``d_in`` rows
(tokens of the whole batch), backwards for up to ``d_out``. A sum in less than float32 would round
``B A`` away, so there it is always thin. With dropout on the adapter's input there is no such sum,
and the two thin products stand alone.

Whatever is ``r`` wide is held as ``r`` long rows, and the gradient of B is computed transposed:
matrix products are several times slower where a result has only ``r`` columns.

Where a layer holds several adapters (:mod:`client.mixture`), each row's thin product is weighed by
gates between A and B, ``x W^T + s (g * x A^T) B^T``, and is always thin: no sum serves all rows.

The same function can keep ``G_i``, the factors' gradient of each example i, in place of their sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from client.frozenproduct import frozen_product, frozen_way_back
from client.lean import without_quantizers
from client.mixture import Router, gated, of_gates
from client.quantization import is_half, makes_copy, stored_weight
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from peft import PeftModel


class LowRankLayer:
    """One LoRA layer of a PEFT model, computed by this module instead of PEFT's forward.

    Attributes:
        module: PEFT's layer.
        a: the factor A, ``(r, d_in)``.
        b: the factor B, ``(d_out, r)``.
        examples: number of examples whose gradients are kept apart; 0 sums them as autograd does.
        samples: what was kept, ``"A"`` and ``"B"`` to ``(examples, *factor.shape)``; those of B
            are transposed views.
        router: makes the gates of the layer's adapters; None for one adapter.
    """

    __slots__ = ("_base", "_dropout", "_scale", "a", "b", "examples", "module", "router", "samples")

    def __init__(self, module: Any, router: Router | None = None) -> None:  # noqa: ANN401  (PEFT has no types)
        self.module = module
        self.router = router
        self._base: torch.nn.Module = module.base_layer
        self._dropout: torch.nn.Module = module.lora_dropout["default"]
        self._scale = float(module.scaling["default"])
        self.a: torch.nn.Parameter = module.lora_A["default"].weight
        self.b: torch.nn.Parameter = module.lora_B["default"].weight
        self.examples = 0
        self.samples: dict[str, torch.Tensor] = {}

    @property
    def scale(self) -> float:
        """The factor ``s``."""
        return self._scale

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
        if self.module.disable_adapters or self.module.merged:
            output: torch.Tensor = self._base(x)
            return output
        if self.examples and not (x.dim() >= 2 and x.shape[0] == self.examples):
            msg = (
                f"A layer sees an input of shape {tuple(x.shape)} for {self.examples} examples: "
                "its gradient cannot be told apart by example."
            )
            raise UnsupportedModel(msg, hint="Use clipper='microbatch'.")
        gates = self._gates(x)
        if self._dropout.training and not isinstance(self._dropout, torch.nn.Identity):
            plain: torch.Tensor = self._base(x)
            thin: torch.Tensor = _Thin.apply(self._dropout(x), self.a, self.b, gates, self)  # type: ignore[no-untyped-call]
            return plain + thin
        product: torch.Tensor = _Product.apply(x, self.a, self.b, gates, self)  # type: ignore[no-untyped-call]
        return product

    def _gates(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the gates of an input's rows, ``(K, rows)``; None for one adapter.

        Raises:
            UnsupportedModel: if the input has other rows than the text has places.
        """
        if self.router is None:
            return None
        gates, rows = self.router.gates, x.numel() // x.shape[-1]
        if gates is None or gates.shape[1] != rows:
            msg = f"A layer sees an input of shape {tuple(x.shape)}, and gates of another."
            raise UnsupportedModel(msg, hint="A mixture needs layers that see every token.")
        return gates

    def summed(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return ``W + s B A`` of shape ``(d_out, d_in)``, and the bias."""
        weight, bias = stored_weight(self._base)
        with torch.no_grad():
            if makes_copy(self._base):
                return weight.addmm_(self.b, self.a, alpha=self._scale), bias
            return torch.addmm(weight, self.b, self.a, alpha=self._scale), bias

    def frozen(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b`` of the frozen layer alone, ``(rows, d_out)``."""
        return frozen_product(rows, self._base)

    def frozen_back(self, grad: torch.Tensor) -> torch.Tensor:
        """Return ``g W`` of the frozen layer alone, ``(rows, d_in)``."""
        return frozen_way_back(grad, self._base)

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``s A x^T`` of shape ``(r, rows)``."""
        return (self.a.to(x.dtype) @ x.t()).mul_(self._scale)

    def up(self, grad: torch.Tensor) -> torch.Tensor:
        """Return ``s B^T g^T`` of shape ``(r, rows)``."""
        return (self.b.to(grad.dtype).t() @ grad.t()).mul_(self._scale)

    def add_down(self, product: torch.Tensor, down: torch.Tensor) -> None:
        """Add the thin product to the full one, ``(rows, d_out)``, in place."""
        product.addmm_(down.t(), self.b.to(down.dtype).t())

    def add_up(self, of_x: torch.Tensor, up: torch.Tensor) -> None:
        """Add the thin gradient of ``x`` to the full one, ``(rows, d_in)``, in place."""
        of_x.addmm_(up.t(), self.a.to(up.dtype))

    def is_thin(self, rows: torch.Tensor) -> bool:
        """Tell whether the thin way is taken for a product with these rows; see the module."""
        half = rows.dtype != torch.float32 or is_half(self._base)
        return half or self.router is not None or rows.shape[0] <= rows.shape[1]

    def keep(self, kind: str, thin: torch.Tensor, wide: torch.Tensor) -> torch.Tensor | None:
        """Return a factor's gradient, or keep it by example and return None.

        Args:
            kind: ``"A"`` or ``"B"``.
            thin: ``(r, rows)``.
            wide: ``(rows, d)``. The product of the two, over the rows of one example or of all, is
                the gradient of A, or that of B transposed.
        """
        if not self.examples:
            product = thin @ wide
            return product if kind == "A" else product.t()
        self.keep_apart(kind, thin.view(thin.shape[0], self.examples, -1).transpose(0, 1), wide)
        return None

    def keep_apart(self, kind: str, of_each: torch.Tensor, wide: torch.Tensor) -> None:
        """Keep a factor's gradient by example; as :meth:`keep`, with thin ``(examples, r, T)``."""
        gradient = torch.bmm(of_each, wide.view(self.examples, -1, wide.shape[-1]))
        if kind == "B":
            gradient = gradient.transpose(1, 2)
        # A layer that runs twice in one pass adds up, as autograd would.
        earlier = self.samples.get(kind)
        self.samples[kind] = gradient if earlier is None else earlier.add_(gradient)


def low_rank_layers(peft_model: PeftModel, router: Router | None = None) -> list[LowRankLayer]:
    """Return every LoRA layer of a PEFT model, attached; with a router, each is a mixture."""
    with without_quantizers():
        from peft.tuners.lora import LoraLayer

    layers = [LowRankLayer(m, router) for m in peft_model.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        layer.attach()
    return layers


class _Product(torch.autograd.Function):
    """``x W^T + s (x A^T) B^T + b``, or with gates ``x W^T + s (g * x A^T) B^T + b``."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        gates: torch.Tensor | None,
        layer: LowRankLayer,
    ) -> torch.Tensor:
        """Return the product; only what the way back needs is kept."""
        del a, b
        rows = _rows(x)
        thin = layer.is_thin(rows)
        down = layer.down(rows) if thin or ctx.needs_input_grad[2] else None
        _remember(ctx, x, rows, down, gates, layer)
        if thin and down is not None:
            product = layer.frozen(rows)
            layer.add_down(product, down if gates is None else gated(down, gates))
        else:
            product = F.linear(rows, *layer.summed())
        return product.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of ``x`` and the factors."""
        layer: LowRankLayer = ctx.layer
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        needs_x, needs_a, _, needs_gates, _ = ctx.needs_input_grad
        thin = layer.is_thin(grad)
        up = layer.up(grad) if needs_a or needs_gates or (needs_x and thin) else None
        up, *factors = _thin_gradients(ctx, grad, up)
        if not needs_x:
            return None, *factors, None
        if thin and up is not None:
            of_x = layer.frozen_back(grad)
            layer.add_up(of_x, up)
        else:
            of_x = grad @ layer.summed()[0]
        return of_x.view(ctx.shape), *factors, None


class _Thin(torch.autograd.Function):
    """``s (x A^T) B^T`` alone, for an input that dropout has thinned out."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        gates: torch.Tensor | None,
        layer: LowRankLayer,
    ) -> torch.Tensor:
        """Return the two thin products."""
        rows = _rows(x)
        down = layer.down(rows)
        _remember(ctx, x, rows, down, gates, layer)
        if gates is not None:
            down = gated(down, gates)
        return (down.t() @ b.to(rows.dtype).t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of ``x`` and the factors."""
        layer: LowRankLayer = ctx.layer
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        needs_x, needs_a, _, needs_gates, _ = ctx.needs_input_grad
        up = layer.up(grad) if needs_a or needs_x or needs_gates else None
        up, *factors = _thin_gradients(ctx, grad, up)
        of_x = (
            (up.t() @ layer.a.to(up.dtype)).view(ctx.shape) if needs_x and up is not None else None
        )
        return of_x, *factors, None


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return an input as ``(rows, d_in)`` in the precision that its product is taken in."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return x.reshape(-1, x.shape[-1]).to(dtype)


def _remember(
    ctx: Any,  # noqa: ANN401
    x: torch.Tensor,
    rows: torch.Tensor,
    down: torch.Tensor | None,
    gates: torch.Tensor | None,
    layer: LowRankLayer,
) -> None:
    """Keep what the gradients of the factors that train, and of gates, need."""
    _, needs_a, needs_b, needs_gates, _ = ctx.needs_input_grad
    # The factors are among it so that torch refuses to go back if they changed in between.
    ctx.save_for_backward(
        rows if needs_a else None,
        down if needs_b or needs_gates else None,
        gates,
        layer.a.detach(),
        layer.b.detach(),
    )
    ctx.layer = layer
    ctx.shape = x.shape


def _thin_gradients(
    ctx: Any,  # noqa: ANN401
    grad: torch.Tensor,
    up: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    """Return ``up`` behind the gates, and the gradients of A, B and the gates.

    Those of A and B are None where the layer keeps them by example. With ``g`` the gates (one where
    there are none), ``G_A = s sum_t (g_t * B^T g_t) x_t^T``, ``G_B = s sum_t g_t (g_t * A x_t)^T``.
    """
    rows, down, gates, _, _ = ctx.saved_tensors
    layer: LowRankLayer = ctx.layer
    _, needs_a, needs_b, needs_gates, _ = ctx.needs_input_grad
    of_gate = None
    if gates is not None:
        if needs_gates and down is not None and up is not None:
            of_gate = of_gates(down, up, gates) / layer.scale
        up = None if up is None else gated(up, gates)
        down = None if down is None else gated(down, gates)
    of_a = layer.keep("A", up, rows) if needs_a and up is not None else None
    of_b = layer.keep("B", down, grad) if needs_b and down is not None else None
    return up, of_a, of_b, of_gate
