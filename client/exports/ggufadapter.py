"""A LoRA adapter as GGUF, for llama.cpp's ``--lora``: made in every round, beside one base file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from client.exports.layout import Array, Layout, require_gguf
from shared.errors import AdapterIncompatible, InvalidValue
from shared.lora import Factors, plain_name
from shared.loraconfig import LoraTerms

TYPES: Mapping[str, type[np.floating]] = {"f32": np.float32, "f16": np.float16}


def write_adapter_gguf(
    path: Path,
    factors: Factors,
    terms: LoraTerms,
    layout: Layout,
    *,
    name: str,
    facts: Mapping[str, str],
    dtype: str = "f32",
) -> int:
    """Write an adapter that llama.cpp loads on the GGUF of the same base model.

    The file is a function of the arguments alone: the same adapter gives the same bytes.
    llama.cpp scales by ``alpha / r``; for rsLoRA, whose scale is ``alpha / sqrt(r)``, alpha is
    written as ``alpha * sqrt(r)`` (llama.cpp's own converter leaves it out).

    Args:
        path: a new file.
        factors: by PEFT's names: A of shape ``(r, d_in)``, B of shape ``(d_out, r)``.
        terms: rank and scale.
        layout: of the base model.
        name: what the adapter is called.
        facts: further strings to record, by their GGUF keys.
        dtype: of the factors, "f32" or "f16".

    Returns:
        How many tensors were written.

    Raises:
        InvalidValue: for another type, or a factor that "f16" cannot hold.
        AdapterIncompatible: if factors do not fit to the base's attention heads.
        UnsupportedModel: if llama.cpp has no such layer.
        MissingDependency: if gguf is not installed.
    """
    gguf = require_gguf()
    if dtype not in TYPES:
        msg = f"dtype={dtype!r}, expected one of: {', '.join(TYPES)}."
        raise InvalidValue(msg)
    alpha = terms.lora_alpha * (math.sqrt(terms.r) if terms.rslora else 1.0)
    writer = gguf.GGUFWriter(path, layout.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in facts.items():
        writer.add_string(key, value)
    count = 0
    for label, values in adapter_tensors(factors, layout):
        writer.add_tensor(label, _cast(label, values, dtype))
        count += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def adapter_tensors(factors: Factors, layout: Layout) -> Iterator[tuple[str, Array]]:
    """Yield llama.cpp's name and values of every factor, A and B of a layer one after the other.

    Raises:
        AdapterIncompatible: if a factor does not fit to the base's attention heads.
        UnsupportedModel: if llama.cpp has no such layer.
    """
    for name in sorted(factors):
        stem, _, kind = name.removesuffix(".weight").rpartition(".lora_")
        label = layout.name(f"{plain_name(stem)}.weight")
        values = factors[name]
        if kind == "B":
            try:
                values = layout.ordered(label, values)
            except ValueError as error:
                msg = f"A factor of {plain_name(stem)} has {values.shape[0]} rows, not the base's."
                raise AdapterIncompatible(msg) from error
        yield f"{label}.lora_{kind.lower()}", values


def _cast(
    label: str, values: Array, dtype: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    """Return a factor in its type, finite as it was."""
    with np.errstate(over="ignore"):
        cast = values.astype(TYPES[dtype])
    if not bool(np.isfinite(cast).all()):
        msg = f"{label} does not fit into {dtype}."
        raise InvalidValue(msg, hint="Write it as f32.")
    return np.ascontiguousarray(cast)
