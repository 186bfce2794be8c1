"""A base model with an adapter folded into its weights: a plain transformers folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from client.adapterfit import spec_of
from client.model import BaseModel, quiet
from shared.adaptermethod import PROMPT, VECTOR
from shared.errors import AdapterIncompatible, InvalidValue
from shared.lora import Factors, plain_name
from shared.loraconfig import LoraTerms

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def merge(base: BaseModel, factors: Factors, terms: LoraTerms) -> None:
    """Fold an adapter into the weights of a base, in place; computed in float64.

    ``scale * B A`` is added. Of IA3 the rows or columns of weights are multiplied, and biases.

    Args:
        base: not quantised, without an adapter.
        factors: float32, by PEFT's names.
        terms: rank, scale and layers.

    Raises:
        InvalidValue: if the base is quantised.
        AdapterIncompatible: if the factors are not those of this base's layers, or a prompt's,
            which is in no weight.
    """
    if terms.method == PROMPT:
        msg = "The adapter is a prompt: vectors before a text are in no weight of the base."
        raise AdapterIncompatible(msg, hint="Answer with torch.")
    if base.quantization != "none":
        msg = f"quantization={base.quantization!r}, expected 'none' to merge into."
        raise InvalidValue(msg)
    spec = spec_of(base, factors, terms)
    with torch.no_grad():
        for name in factors if terms.method else ():
            _rescale(base, name, torch.from_numpy(factors[name]).double())
        for factor in spec.of_kind("A"):
            stem = factor.name.removesuffix("lora_A.weight")
            a, b = (
                torch.from_numpy(factors[f"{stem}lora_{kind}.weight"]).double() for kind in "AB"
            )
            module: Any = base.model.get_submodule(plain_name(stem.rstrip(".")))
            change = spec.scale * (b @ a)
            whole = module.weight.double() + (change.T if isinstance(module, Conv1D) else change)
            module.weight.copy_(whole.to(module.weight.dtype))


def _rescale(base: BaseModel, name: str, vector: torch.Tensor) -> None:
    """Multiply a layer's weights by a vector of IA3, ``(1, d_in)`` or ``(d_out, 1)``.

    The layer is ``W (l * x) + b`` with the first, and ``l * (W x + b)`` with the second.
    """
    module: Any = base.model.get_submodule(plain_name(name.removesuffix(f".{VECTOR}")))
    weight = module.weight
    across = vector.T if isinstance(module, Conv1D) else vector
    weight.copy_((weight.double() * across).to(weight.dtype))
    if vector.shape[1] == 1 and module.bias is not None:
        module.bias.copy_((module.bias.double() * vector.flatten()).to(module.bias.dtype))


def write_merged(
    folder: Path, base: BaseModel, origin: Path, factors: Factors, terms: LoraTerms, *, dtype: str
) -> None:
    """Write a merged model that transformers, and every converter from its format, loads.

    Args:
        folder: an existing folder.
        base: not quantised; its weights are changed.
        origin: the base's own folder, whose tokenizer is copied.
        factors: as :func:`merge`.
        terms: as :func:`merge`.
        dtype: "f32" or "bf16".

    Raises:
        InvalidValue: for another type, or as :func:`merge`.
        AdapterIncompatible: as :func:`merge`.
    """
    if dtype not in TYPES:
        msg = f"dtype={dtype!r}, expected one of: {', '.join(TYPES)}."
        raise InvalidValue(msg)
    merge(base, factors, terms)
    model: Any = base.model
    model.to(TYPES[dtype])
    model.config.use_cache = True
    with quiet():
        model.save_pretrained(folder)
    for name in _TOKENIZER:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
