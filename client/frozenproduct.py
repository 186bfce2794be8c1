"""Products with a frozen, quantised weight, in float32 or in bfloat16.

In bfloat16 input and weight are rounded to 8 bits of significand, multiplied exactly, added up in
float32, and the result is rounded once more. Everything else stays in float32: activations, norms,
attention, the loss, and the adapter's factors with their gradients, so that a gradient is clipped
as it is summed. transformers calls this ``bnb_4bit_compute_dtype``.

A processor without such instructions takes the product of the same rounded numbers in float32,
which costs what float32 costs; the two differ by the order of additions before the last rounding.

Rounding to 8 bits makes large differences of small ones: a sum in another order, 1e-7 apart, may
fall on the other side of a bound between two bfloat16 numbers, up to 8e-3 apart, and the layers
after it spread that. Whatever goes through such a base beside an example therefore changes that
example's gradient by far more than rounding does in float32. Where one example's influence is
bounded, each example goes through alone (:func:`client.clipping.make_clipper`), and clients are
never computed together (:mod:`client.runtime`).
"""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from client.quantization import half_weight, hold, is_half, linear_modules, stored_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def frozen_product(rows: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """Return ``x W^T + b`` of a frozen layer, in the precision of the rows.

    Args:
        rows: ``(..., d_in)``.
        module: as :func:`client.quantization.stored_weight` takes it.
    """
    if is_half(module):
        bias: Any = module.bias
        product = _half_product(rows, half_weight(module).t()).to(rows.dtype)
        return product if bias is None else product.add_(bias)
    weight, bias = stored_weight(module)
    return F.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))


def frozen_way_back(grad: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    """Return ``g W``, the gradient of a frozen layer's input, in the precision of ``g``.

    Args:
        grad: of the layer's output, ``(..., d_out)``.
        module: as :func:`frozen_product`.
    """
    if is_half(module):
        return _half_product(grad, half_weight(module)).to(grad.dtype)
    return grad @ stored_weight(module)[0].to(grad.dtype)


def _half_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the product of two matrices in bfloat16; the right one already is."""
    left = left.to(torch.bfloat16)
    if left.is_cuda or multiplies_in_bfloat16():
        return left @ right
    return (left.float() @ right.float()).to(torch.bfloat16)


@cache
def multiplies_in_bfloat16() -> bool:
    """Tell whether this processor multiplies in bfloat16, as torch sees it."""
    # Torch 2.9 and 2.10 do not say.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class FrozenProduct(torch.autograd.Function):
    """``x W^T + b`` for a stored weight that is dequantised on the way and never kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:  # noqa: ANN401
        """Return ``x W^T + b``."""
        ctx.module = module
        return frozen_product(x, module)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        """Return the gradient of ``x``; the weight is frozen."""
        return frozen_way_back(grads[0], ctx.module), None


def take_products(model: PreTrainedModel, *, half: bool, cache: bool) -> None:
    """Take the products of a quantised model's linear layers here, in place of its library's.

    Args:
        model: as :func:`client.quantization.finish_quantized` left it.
        half: in bfloat16.
        cache: keep the dequantised weights (the same numbers, more memory, less time).
    """
    for _, module in linear_modules(model):
        hold(module, half=half, cache=cache)
        module.forward = MethodType(_forward, module)


def _forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Replace a quantised layer's forward by the product of this module."""
    product: torch.Tensor = FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
    return product
