"""A base model in full precision, also where its folder stores it in 8 or 4 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from client.injection import is_conv1d
from client.model import BaseModel, load_base, stored_quantization
from client.quantization import dequantize, linear_modules


def load_plain(folder: Path) -> BaseModel:
    """Load a base model with every weight in float32.

    A base that ``fedslm base compress`` or bitsandbytes stored in 8 or 4 bits is dequantised: the
    weights are then the numbers that the stored codes stand for, so that what is exported computes
    what the adapter was trained on.

    Args:
        folder: of the base.

    Returns:
        The model, with the digest of the folder as it is stored.

    Raises:
        ModelNotFound: and the other errors of :func:`client.model.load_base`.
    """
    base = load_base(str(folder), quantization=stored_quantization(folder))
    if base.quantization == "none":
        return base
    model: Any = base.model
    transposed = is_conv1d(model)
    for name, module in list(linear_modules(model)):
        parent, _, leaf = name.rpartition(".")
        made = _conv1d(module) if transposed else _plain(module)
        setattr(model.get_submodule(parent), leaf, made)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    return replace(base, quantization="none")


def _plain(module: Any) -> torch.nn.Linear:  # noqa: ANN401  (one of several kinds of layers)
    """Return a layer of torch that computes what a quantised one does."""
    weight = dequantize(module)
    plain = torch.nn.Linear(
        weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta"
    )
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = torch.nn.Parameter(module.bias.detach().float(), requires_grad=False)
    return plain


def _conv1d(module: Any) -> torch.nn.Module:  # noqa: ANN401
    """Return a layer of transformers' own kind that computes what a quantised one does."""
    from transformers.pytorch_utils import Conv1D

    weight = dequantize(module)
    make: Any = Conv1D
    plain: torch.nn.Module = make(weight.shape[0], weight.shape[1])
    plain.weight = torch.nn.Parameter(weight.T.contiguous(), requires_grad=False)
    plain.bias = torch.nn.Parameter(module.bias.detach().float(), requires_grad=False)
    return plain
