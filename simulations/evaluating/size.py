"""How large a model is, against the same in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from client.model import quiet
from simulations.compress.writing import weights_bytes

if TYPE_CHECKING:
    from simulations.evaluating.subject import Subject

_FLOAT32 = 4


def measure_size(folder: str, subject: Subject) -> dict[str, Any]:
    """Return bytes on disk and in memory, and how many times smaller than float32 each is.

    Args:
        folder: of the base.
        subject: the loaded model.

    Returns:
        ``before`` is the base as it is stored, ``after`` the same with the adapter beside it.
    """
    from pathlib import Path

    parameters = count_parameters(folder)
    float32 = _FLOAT32 * parameters
    disk = weights_bytes(Path(folder))
    source = subject.source
    adapter = 0 if source is None else sum(f.nbytes for f in source.factors.values())
    found: dict[str, Any] = {
        "kind": "size",
        "parameters": parameters,
        "float32_bytes": float32,
        "adapter_bytes": adapter,
    }
    for view in subject.views:
        more = adapter if view == "after" else 0
        found[view] = {
            "disk_bytes": disk + more,
            "memory_bytes": subject.memory_bytes + more,
            "disk_compression": float32 / (disk + more),
            "memory_compression": float32 / (subject.memory_bytes + more),
        }
    return found


def count_parameters(folder: str) -> int:
    """Return the number of a base's parameters, shared ones once, however they are stored."""
    from transformers import AutoConfig, AutoModelForCausalLM

    make: Any = AutoModelForCausalLM
    with quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = make.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
