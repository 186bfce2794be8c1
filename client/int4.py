"""Frozen linear weights in 4 bits, in groups of 32 along the inputs of a row.

The format is that of the runtimes on devices (llama.cpp's ``Q4_0``, ONNX Runtime's symmetric
``MatMulNBits`` with blocks of 32): a group shares one float16 scale ``d``, the signed weight of the
largest magnitude divided by -8, and each weight is an integer q from -8 to 7 that stands for
``q * d``. That is 4.5 bits a weight. Nothing but torch is needed, so that a client without
bitsandbytes can hold its base in 4 bits, and train on the numbers that the device will run.

Weights only: activations are never quantised (see :mod:`client.quantization`).
"""

from __future__ import annotations

from typing import Any, cast

import torch

from shared.errors import UnsupportedModel

GROUP = 32
"""Weights that share a scale."""
_HALF = GROUP // 2


class Int4Linear(torch.nn.Linear):
    """A frozen linear layer whose weight is stored in 4 bits; the product is made elsewhere.

    Attributes:
        weight: uint8, shape ``(d_out, groups, 16)``: byte j of a group holds weight j in its low
            half and weight j + 16 in its high half, each as ``q + 8``.
        scales: float16, shape ``(d_out, groups)``.
        zeros: uint8, shape ``(d_out, groups)``: what stands for 0 in place of 8; or None. Only
            checkpoints that were quantised elsewhere have them (:mod:`client.int4store`).
        order: int32, shape ``(d_in,)``: column j of the weight is stored at place ``order[j]``; or
            None for their own order. Only GPTQ checkpoints with act-order have one.
        bias: float32, shape ``(d_out,)``, or None.
    """

    scales: torch.Tensor
    zeros: torch.Tensor | None
    order: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Quantise a weight of shape ``(d_out, d_in)``."""
        # The parent would allocate the float weight; only its attributes are wanted.
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self._hold(*quantize_int4(weight), bias)

    @classmethod
    def of_codes(
        cls,
        packed: torch.Tensor,
        scales: torch.Tensor,
        columns: int,
        bias: torch.Tensor | None,
        zeros: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> Int4Linear:
        """Return a layer of codes that were chosen elsewhere, as :func:`pack_int4` packs them.

        Args:
            packed: uint8, ``(d_out, groups, 16)``.
            scales: float16, ``(d_out, groups)``.
            columns: d_in.
            bias: ``(d_out,)``, or None.
            zeros: uint8, ``(d_out, groups)``, or None for 8.
            order: int32, ``(d_in,)``, or None.
        """
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer.out_features, layer.in_features = packed.shape[0], columns
        layer._hold(packed, scales, bias, zeros, order)
        return layer

    def _hold(
        self,
        packed: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
        zeros: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> None:
        """Take the tensors in, frozen."""
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.register_buffer("order", order)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]

    def dequantized(self) -> torch.Tensor:
        """Return the float32 weight ``(d_out, d_in)`` that the codes stand for."""
        stored = dequantize_int4(self.weight.data, self.scales, self.in_features, self.zeros)
        return stored if self.order is None else stored.index_select(1, self.order)


def quantize_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a matrix.

    Args:
        weight: ``(d_out, d_in)``, floating point, finite; the last group of a row is filled up
            with zeros.

    Returns:
        Codes, uint8 ``(d_out, groups, 16)``, and scales, float16 ``(d_out, groups)``. A weight is
        off by at most half a scale, except that one opposite in sign and equal in size to the
        group's largest is off by a whole one (there is no +8).

    Raises:
        UnsupportedModel: if a weight is not finite, or too large for a scale of 16 bits.
    """
    rows, columns = weight.shape
    groups = group_count(columns)
    padded = torch.zeros((rows, groups * GROUP), dtype=torch.float32, device=weight.device)
    padded[:, :columns] = weight.detach()
    blocks = padded.view(rows, groups, GROUP)
    scales = group_scales(blocks)
    return pack_int4(codes_of(blocks, scales)), scales


def group_count(columns: int) -> int:
    """Return how many groups a row of so many weights has."""
    return -(-columns // GROUP)


def group_scales(blocks: torch.Tensor) -> torch.Tensor:
    """Return the float16 scales ``(...)`` of groups of weights ``(..., group)``.

    Raises:
        UnsupportedModel: if a weight is not finite, or too large for a scale of 16 bits.
    """
    largest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
    scales = (largest / -8.0).to(torch.float16).squeeze(-1)
    if not bool(torch.isfinite(scales).all()):
        msg = "A weight is not finite, or above 524032 in size: 4-bit groups cannot scale it."
        raise UnsupportedModel(msg, hint="Use quantization='none' for this model.")
    return scales


def codes_of(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the nearest codes, float from -8 to 7, of weights ``(..., n)`` of one scale each."""
    # The codes belong to the scale as it is stored, not to the one before rounding to 16 bits.
    divisor = scales.float().unsqueeze(-1)
    return torch.where(divisor == 0.0, 0.0, blocks / divisor).round_().clamp_(-8, 7)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes from -8 to 7, ``(d_out, groups, 32)``, into uint8 ``(d_out, groups, 16)``."""
    halves = (codes + 8).to(torch.uint8)
    return (halves[..., :_HALF] | (halves[..., _HALF:] << 4)).contiguous()


def dequantize_int4(
    packed: torch.Tensor,
    scales: torch.Tensor,
    columns: int,
    zeros: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the float32 matrix ``(d_out, columns)`` that codes, scales and zeros stand for."""
    codes = torch.cat([packed & 15, packed >> 4], dim=2).float()
    codes.sub_(8.0 if zeros is None else zeros.float().unsqueeze(2))
    blocks = codes.mul_(scales.float().unsqueeze(2))
    return blocks.view(blocks.shape[0], -1)[:, :columns].contiguous()


def check_orders(model: torch.nn.Module) -> None:
    """Require that every stored order of columns names each place once.

    Raises:
        UnsupportedModel: if one does not; names the layer.
    """
    for name, module in model.named_modules():
        order = module.order if isinstance(module, Int4Linear) else None
        if order is None:
            continue
        if not torch.equal(order.long().sort().values, torch.arange(len(order)).to(order.device)):
            msg = f"{name} has an order of columns that is none."
            raise UnsupportedModel(msg, hint="Convert the checkpoint again.")


def replace_linear(
    model: torch.nn.Module, names: list[str], kind: type[torch.nn.Linear] = Int4Linear
) -> None:
    """Replace linear layers of a model by their quantised forms, in place, one after the other.

    Args:
        model: holds ``torch.nn.Linear`` or transformers ``Conv1D`` layers under the names.
        names: dotted names of the layers.
        kind: made of a float weight ``(d_out, d_in)`` and a bias or None.
    """
    for name in names:
        old: Any = model.get_submodule(name)
        if isinstance(old, kind):
            continue
        # Conv1D stores (d_in, d_out).
        dense = old.weight if isinstance(old, torch.nn.Linear) else old.weight.t()
        parent, _, leaf = name.rpartition(".")
        make: Any = kind
        new: torch.nn.Linear = make(cast("torch.Tensor", dense), old.bias)
        new.train(old.training)
        setattr(model.get_submodule(parent), leaf, new)
