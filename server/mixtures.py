"""A mixture cut into what PEFT can load: its adapters one by one, and the router beside them.

PEFT has no gates, so no single folder of its format is the mixture, and nothing can merge it into
the base: what it adds to a layer differs from token to token. Each adapter by itself is a plain
LoRA with the scale that it has in the mixture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from server.adapters import MANIFEST, PEFT_CONFIG, WEIGHTS
from shared.errors import AdapterCorrupt, AdapterIncompatible
from shared.files import write_bytes, write_json
from shared.loraconfig import LARGEST_CONFIG, LoraTerms, check_factors, read_lora_config
from shared.manifest import LARGEST_WEIGHTS
from shared.mixture import ROUTER
from shared.regularfile import open_regular
from shared.tensorfile import read_tensor_header

ROUTER_FILE = "router.safetensors"
MIXTURE_FILE = "mixture.json"
_FEATURES = (
    "mean of the input embeddings of the tokens so far, less the mean embedding of the vocabulary, "
    "divided by its length; gates are softmax(sharpness * router @ features)"
)

Arrays = Mapping[str, NDArray[Any]]


def split_mixture(folder: Path, to: Path) -> list[Path]:
    """Cut a mixture into one PEFT folder for each adapter, and a file with the router.

    Args:
        folder: of an adapter, as :func:`server.adapters.write_adapter` writes it.
        to: a new or empty folder.

    Returns:
        The folders, in the order of the gates.

    Raises:
        AdapterCorrupt: if a file is missing or damaged.
        AdapterIncompatible: if it is no mixture, or ``to`` is not empty.
    """
    config_bytes = _read(folder / PEFT_CONFIG, LARGEST_CONFIG)
    terms = read_lora_config(config_bytes)
    if terms.mixture is None:
        msg = f"{folder.name} holds one adapter and no mixture: PEFT loads it as it is."
        raise AdapterIncompatible(msg)
    if to.exists() and any(to.iterdir()):
        msg = f"{to.name} is not empty."
        raise AdapterIncompatible(msg, hint="Give a new folder.")
    tensors, adapters = _tensors(folder / WEIGHTS, terms), terms.mixture.adapters
    names = [f"adapter-{k}" for k in range(adapters)]
    for k, name in enumerate(names):
        _write_one(to / name, k, tensors, terms, json.loads(config_bytes))
    (routed,) = (value for name, value in tensors.items() if name.endswith(f".{ROUTER}.weight"))
    write_bytes(to / ROUTER_FILE, save({"router": np.ascontiguousarray(routed)}))
    facts = {**terms.mixture.to_json(), "features": _FEATURES, "folders": names}
    write_json(to / MIXTURE_FILE, facts)
    return [to / name for name in names]


def _write_one(
    folder: Path, k: int, tensors: Arrays, terms: LoraTerms, config: dict[str, Any]
) -> None:
    """Write one adapter: its rows of every A and its columns of every B."""
    adapters = 1 if terms.mixture is None else terms.mixture.adapters
    rank = terms.r // adapters
    rows = slice(k * rank, (k + 1) * rank)
    cut = {
        name: np.ascontiguousarray(value[rows] if ".lora_A." in name else value[:, rows])
        for name, value in tensors.items()
        if ".lora_" in name
    }
    del config["mixture"]
    alpha = terms.lora_alpha / (math.sqrt(adapters) if terms.rslora else adapters)
    folder.mkdir(parents=True)
    write_bytes(folder / WEIGHTS, save(cut, metadata={"format": "pt"}))
    write_json(
        folder / PEFT_CONFIG, {**config, "peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    )
    write_json(folder / MANIFEST, {"of_mixture": k, "adapters": adapters})


def _tensors(path: Path, terms: LoraTerms) -> dict[str, NDArray[Any]]:
    """Read the factors and the router."""
    with open_regular(path) as stream:
        data = stream.read(LARGEST_WEIGHTS + 1)
        stream.seek(0)
        check_factors(read_tensor_header(stream, len(data)), terms)
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        msg = f"{path.name} is damaged."
        raise AdapterCorrupt(msg) from error


def _read(path: Path, largest: int) -> bytes:
    """Read a small file of an adapter.

    Raises:
        AdapterCorrupt: if it is missing or no regular file.
    """
    with open_regular(path) as stream:
        return stream.read(largest + 1)
