"""Adapters on disk: PEFT's format, so that anyone can load them without fedslm.

A mixture is the exception: PEFT would add up its adapters without gates, another model than the one
that was trained. Its configuration names a type that PEFT refuses (:mod:`server.mixtures` cuts it
into adapters that PEFT loads one by one).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.adaptermethod import peft_config
from shared.errors import AdapterCorrupt, AdapterIncompatible
from shared.files import write_bytes, write_json
from shared.lora import AdapterSpec, Factors
from shared.mixture import PEFT_TYPE
from shared.regularfile import open_regular
from shared.residual import Residual, unstacked, widened
from shared.tensorfile import read_tensor_header

WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
MANIFEST = "fedslm.json"
_MOST_RANK = 65_536


def write_adapter(
    folder: Path,
    *,
    spec: AdapterSpec,
    factors: Factors,
    base_model: str,
    dropout: float,
    manifest: Mapping[str, Any],
) -> str:
    """Write an adapter that ``PeftModel.from_pretrained(base, folder)`` loads, or a mixture.

    Args:
        folder: created if missing.
        spec: names and shapes.
        factors: every A and B, float32.
        base_model: what the adapter was trained on, as PEFT's config names it.
        dropout: recorded for further training.
        manifest: what else to record (base digest, plan digest, ledger head); JSON.

    Returns:
        The SHA-256 of the weights file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec.flatten(factors)
    tensors = {f.name: factors[f.name] for f in spec.factors} | _identities(spec)
    weights = save(tensors, metadata={"format": "pt"})
    digest = hashlib.sha256(weights).hexdigest()
    said = {
        "task_type": "SEQ_CLS" if spec.head else "CAUSAL_LM",
        "base_model_name_or_path": base_model,
    }
    config = {**said, **(_pairs(spec, dropout) if spec.method is None else method_config(spec))}
    write_bytes(folder / WEIGHTS, weights)
    write_json(folder / PEFT_CONFIG, config)
    mixed = {} if spec.mixture is None else {"mixture": spec.mixture.to_json()}
    write_json(folder / MANIFEST, {**manifest, **mixed, "weights_sha256": digest})
    return digest


def _pairs(spec: AdapterSpec, dropout: float) -> dict[str, Any]:
    """Return PEFT's configuration of pairs of factors, or that of a mixture."""
    whole = whole_modules(spec)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "r": spec.r,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": dropout,
        "target_modules": list(spec.target_modules),
        "fan_in_fan_out": spec.fan_in_fan_out,
        "bias": "none",
        "inference_mode": True,
        "use_rslora": spec.rslora,
        "use_dora": False,
        "modules_to_save": whole or None,
    }
    if whole:
        config["exclude_modules"] = whole
    if spec.mixture is not None:
        config |= {"peft_type": PEFT_TYPE, "mixture": spec.mixture.to_json()}
    return config


def method_config(spec: AdapterSpec) -> dict[str, Any]:
    """Return PEFT's configuration of an adapter that is no low-rank product."""
    if spec.method is None:
        msg = "An adapter of pairs has no configuration of another method."
        raise AdapterIncompatible(msg)
    return peft_config(
        spec.method,
        targets=spec.target_modules,
        fan_in_fan_out=spec.fan_in_fan_out,
        shape=spec.factors[0].shape,
    )


def whole_modules(spec: AdapterSpec) -> list[str]:
    """Return the modules that PEFT saves whole: a classifier's head and what the base lacks."""
    return [spec.head, *(name for name, _ in spec.identities)] if spec.head else []


def _identities(spec: AdapterSpec) -> dict[str, NDArray[np.float32]]:
    """Return the layers that the base lacks, under PEFT's names."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, width in spec.identities:
        found[f"base_model.model.{name}.weight"] = np.eye(width, dtype=np.float32)
        found[f"base_model.model.{name}.bias"] = np.zeros(width, dtype=np.float32)
    return found


def read_released(folder: Path, spec: AdapterSpec) -> tuple[Factors, Residual | None]:
    """Read the adapter of a run, and what lies beneath it where both were released as one.

    Args:
        folder: of the adapter.
        spec: the adapter that clients trained.

    Raises:
        AdapterCorrupt: as :func:`read_adapter`.
        AdapterIncompatible: also if its rank is smaller.
    """
    if spec.method is not None:
        return read_adapter(folder, spec), None
    try:
        said = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))["r"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{PEFT_CONFIG} is missing or damaged."
        raise AdapterCorrupt(msg) from error
    if type(said) is not int or not spec.r <= said <= _MOST_RANK:
        msg = f"Found an adapter of another rank than expected, {spec.r} or more."
        raise AdapterIncompatible(msg)
    wide = spec if said == spec.r else widened(spec, said)
    return unstacked(spec, wide, read_adapter(folder, wide))


def read_adapter(folder: Path, spec: AdapterSpec) -> Factors:
    """Read the factors of an adapter folder.

    Raises:
        AdapterCorrupt: if the weights are missing, damaged, or anything but plain tensors.
        AdapterIncompatible: if names or shapes differ from the specification.
    """
    with open_regular(folder / WEIGHTS) as stream:
        size = os.fstat(stream.fileno()).st_size
        tensors = read_tensor_header(stream, size)
        beside = sum(array.size for array in _identities(spec).values())
        if sum(math.prod(tensor.shape) for tensor in tensors) != spec.size() + beside:
            msg = f"{WEIGHTS} does not hold as many numbers as the adapter has."
            raise AdapterIncompatible(msg)
        stream.seek(0)
        data = stream.read(size)
    try:
        factors: Factors = load(data)
    except (SafetensorError, ValueError) as error:
        msg = f"{WEIGHTS} is missing or damaged."
        raise AdapterCorrupt(msg) from error
    return spec.unflatten(spec.flatten(factors))
