"""Frozen linear weights in 8 bits, one scale a row: torchao's int8 weight-only, without torchao.

A row's scale d is its largest magnitude divided by 127.5 (at least float32's epsilon), and each
weight is the nearest integer q from -128 to 127, which stands for ``q * d``. Codes and scales are
those of torchao's ``Int8WeightOnlyConfig`` bit for bit, and folders are written and read in
torchao's own layout (:mod:`client.torchaostore`), so that other programs share them. torchao itself
is not needed: no device installs one more library for a product that is computed here anyway.

Unlike ``int8`` it needs no bitsandbytes, which has no build for every device.
Weights only: activations are never quantised (see :mod:`client.quantization`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from shared.errors import UnsupportedModel

_LEVELS = 127.5
_LEAST = float(torch.finfo(torch.float32).eps)


class TorchaoInt8Linear(torch.nn.Linear):
    """A frozen linear layer whose weight is stored in 8 bits; the product is made elsewhere.

    Attributes:
        weight: int8, shape ``(d_out, d_in)``.
        scales: float32, shape ``(d_out, 1)``.
        bias: float32, shape ``(d_out,)``, or None.
    """

    scales: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Quantise a weight of shape ``(d_out, d_in)``."""
        # The parent would allocate the float weight; only its attributes are wanted.
        torch.nn.Module.__init__(self)
        self._hold(*quantize_rows(weight), bias)

    @classmethod
    def of_codes(
        cls, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
    ) -> TorchaoInt8Linear:
        """Return a layer of codes int8 ``(d_out, d_in)`` and scales float32 ``(d_out, 1)``."""
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._hold(codes, scales, bias)
        return layer

    def _hold(self, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take the tensors in, frozen."""
        self.out_features, self.in_features = codes.shape
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]

    def dequantized(self) -> torch.Tensor:
        """Return the float32 weight ``(d_out, d_in)`` that the codes stand for."""
        return self.weight.data.float().mul_(self.scales)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a matrix.

    Args:
        weight: ``(d_out, d_in)``, floating point, finite.

    Returns:
        Codes, int8 ``(d_out, d_in)``, and scales, float32 ``(d_out, 1)``. A weight is off by at
        most half a scale (the largest of a row would be 127.5, and becomes 127 or -128).

    Raises:
        UnsupportedModel: if a weight is not finite.
    """
    with torch.no_grad():
        dense = weight.detach().float()
        scales = (dense.abs().amax(dim=1, keepdim=True) / _LEVELS).clamp_(min=_LEAST)
        if not bool(torch.isfinite(scales).all()):
            msg = "A weight is not finite: no scale of 8 bits fits."
            raise UnsupportedModel(msg, hint="Use quantization='none' for this model.")
        # The library multiplies by the reciprocal, which rounds otherwise than a division.
        codes = (dense * (1.0 / scales)).round_().clamp_(-128, 127).to(torch.int8)
    return codes, scales


def is_int8_weight_only(settings: Mapping[str, Any]) -> bool:
    """Tell whether a ``quantization_config`` is torchao's int8 weight-only with a scale a row."""
    said = settings.get("quant_type")
    default = said.get("default") if isinstance(said, dict) and len(said) == 1 else None
    if settings.get("quant_method") != "torchao" or not isinstance(default, dict):
        return False
    data = default.get("_data")
    grain = data.get("granularity") if isinstance(data, dict) else None
    by_row = isinstance(grain, dict) and grain.get("_type") == "PerRow"
    return default.get("_type") == "Int8WeightOnlyConfig" and by_row
