"""Adapters on disk: PEFT's format, so that anyone can load them without fedslm."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import AdapterCorrupt, AdapterIncompatible
from shared.files import write_bytes, write_json
from shared.lora import AdapterSpec, Factors
from shared.regularfile import open_regular
from shared.tensorfile import read_tensor_header

WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
MANIFEST = "fedslm.json"


def write_adapter(
    folder: Path,
    *,
    spec: AdapterSpec,
    factors: Factors,
    base_model: str,
    dropout: float,
    manifest: Mapping[str, Any],
) -> str:
    """Write an adapter that ``PeftModel.from_pretrained(base, folder)`` loads.

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
    weights = save({f.name: factors[f.name] for f in spec.factors}, metadata={"format": "pt"})
    digest = hashlib.sha256(weights).hexdigest()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.r,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": dropout,
        "target_modules": list(spec.target_modules),
        "fan_in_fan_out": spec.fan_in_fan_out,
        "bias": "none",
        "inference_mode": True,
        "use_rslora": spec.rslora,
        "use_dora": False,
        "modules_to_save": None,
    }
    write_bytes(folder / WEIGHTS, weights)
    write_json(folder / PEFT_CONFIG, config)
    write_json(folder / MANIFEST, {**manifest, "weights_sha256": digest})
    return digest


def read_adapter(folder: Path, spec: AdapterSpec) -> Factors:
    """Read the factors of an adapter folder.

    Raises:
        AdapterCorrupt: if the weights are missing, damaged, or anything but plain tensors.
        AdapterIncompatible: if names or shapes differ from the specification.
    """
    with open_regular(folder / WEIGHTS) as stream:
        size = os.fstat(stream.fileno()).st_size
        tensors = read_tensor_header(stream, size)
        if sum(math.prod(tensor.shape) for tensor in tensors) != spec.size():
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
