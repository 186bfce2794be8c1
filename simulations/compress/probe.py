"""One base measured in a process of its own: perplexity, peak memory of loading, speed.

``python -m simulations.compress.probe FOLDER QUANTIZATION ROWS`` prints one JSON object. All that
loading imports is imported, and the model's code run on a skeleton, before memory is looked at, so
that the peak is the model's and not the libraries'.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from client.model import load_base, quiet

_PASSES = 5
_AT_ONCE = 8


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    from safetensors.torch import load_file

    folder, quantization, rows = arguments
    ids = load_file(rows)["rows"]
    torch.set_num_threads(1)
    warm_up(folder)
    gc.collect()
    forget_peak()
    before = status("VmRSS")
    model = load_base(folder, quantization=quantization).model
    touch(model)
    found: dict[str, float] = {"load_peak_bytes": max(0, status("VmHWM") - before)}
    found |= _quality_and_speed(model, ids)
    sys.stdout.write(json.dumps(found) + "\n")


def perplexity(model: Any, rows: torch.Tensor) -> float:  # noqa: ANN401
    """Return the perplexity of a model over rows of tokens, each read from its beginning.

    Args:
        model: a causal language model.
        rows: int64, ``(count, length)``.
    """
    total, count = 0.0, 0
    with torch.no_grad():
        for part in torch.split(rows, _AT_ONCE):
            logits = model(input_ids=part).logits[:, :-1].flatten(0, 1).float()
            wanted = part[:, 1:].flatten()
            total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            count += wanted.numel()
    return math.exp(total / count)


def _quality_and_speed(model: Any, rows: torch.Tensor) -> dict[str, float]:  # noqa: ANN401
    """Return the perplexity, and tokens read per second of one core: the best of some passes."""
    quality, part = perplexity(model, rows), rows[:_AT_ONCE]
    seconds = math.inf
    with torch.no_grad():
        for _ in range(_PASSES):
            began = time.process_time()
            model(input_ids=part)
            seconds = min(seconds, time.process_time() - began)
    return {"perplexity": quality, "tokens_per_second": part.numel() / seconds}


def touch(model: torch.nn.Module) -> None:
    """Read a byte of every page: weights of a mapped file come into memory when they are used."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().reshape(-1)[::512].sum()


def warm_up(folder: str) -> None:
    """Import what loading imports, and run a model's constructor without weights."""
    import bitsandbytes  # noqa: F401
    from safetensors import safe_open  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    make: Any = AutoModelForCausalLM
    with quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        make.from_config(config)
    AutoTokenizer.from_pretrained(folder, local_files_only=True)


def forget_peak() -> bool:
    """Let the kernel count the peak of this process anew; return whether it can."""
    path = Path("/proc/self/clear_refs")
    if not path.exists():
        return False
    path.write_text("5", encoding="ascii")
    return True


def status(key: str) -> int:
    """Return a line of the process's status, in bytes."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
