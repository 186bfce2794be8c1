"""The runtime ``pytorch`` of the benchmark ``edge``: what a device with torch does."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from simulations.benchmarks.edge_runtimes import (
    ALPHA,
    MAX_GRAD_NORM,
    RANK,
    SEED,
    SIZE_OF_FACTORS,
    TARGETS,
    Answer,
    Step,
)

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.model import BaseModel


def prepare(what: str, base: Path, quantization: str, folder: Path) -> None:
    """Store the base as it is loaded; int8, int4 and NF4 as ``fedslm base compress`` does."""
    del what
    if quantization in {"fp32", "bf16"}:
        shutil.copytree(base, folder)
        return
    from client.int4 import quantize_int4
    from client.model import load_base
    from client.quantization import linear_modules
    from simulations.compress.blocks import matrix_of
    from simulations.compress.protocol import Compressed
    from simulations.compress.writing import write_compressed

    loaded = load_base(str(base))
    codes = {}
    if quantization == "int4":
        codes = {name: quantize_int4(matrix_of(one)) for name, one in linear_modules(loaded.model)}
    done = Compressed(model=loaded.model, storage=quantization, codes=codes)
    folder.mkdir()
    write_compressed(done, loaded.tokenizer, folder)


def imports(what: str) -> None:
    """Import what a worker with torch imports."""
    del what
    import bitsandbytes  # noqa: F401
    import torch
    from safetensors import safe_open  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import client.app
    import client.clipping
    import client.fleet.worker
    import client.runtime  # noqa: F401

    torch.set_num_threads(1)


def trainer(folder: Path, quantization: str) -> Step:
    """Load base and adapter; a step is the default engine's, on one example."""
    import torch

    from client.losses import Batch
    from simulations.benchmarks.dp_step_peers import STEPS

    model = adapted(_load(folder, quantization))
    half = quantization == "bf16"

    def step(ids: Sequence[int]) -> float:
        row = torch.tensor([list(ids)])
        batch = Batch(ids=row, labels=row, attention_mask=torch.ones_like(row))
        products = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()
        with model.training(), products, STEPS["fused"](model) as engine:
            found = engine.clipped_sum(batch, MAX_GRAD_NORM)
        return math.sqrt(sum(float(part.double().square().sum()) for part in found))

    return step


def speaker(folder: Path, quantization: str) -> Answer:
    """Load the base; an answer is the likeliest token each time, from transformers' cache."""
    import torch

    model: Any = _load(folder, quantization).model
    model.eval()

    @torch.inference_mode()
    def answer(prompt: Sequence[int], tokens: int) -> Iterator[int]:
        step, cache = torch.tensor([list(prompt)]), None
        for _ in range(tokens):
            said = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = said.past_key_values
            token = int(said.logits[0, -1].argmax())
            yield token
            step = torch.tensor([[token]])

    return answer


def adapted(base: BaseModel) -> AdaptedModel:
    """Return a base with the adapter of the benchmark: neither A nor B is zero."""
    import numpy as np

    from client.adapter import adapt

    model = adapt(base, r=RANK, alpha=ALPHA, target_modules=TARGETS)
    rng = np.random.default_rng(SEED)
    drawn = rng.standard_normal(model.spec.size("AB"), dtype=np.float32)
    model.load_vector(SIZE_OF_FACTORS * drawn, "AB")
    return model


def _load(folder: Path, quantization: str) -> BaseModel:
    """Load a base as it is stored."""
    import torch

    from client.model import load_base

    stored = {"fp32": "none", "bf16": "none"}.get(quantization, quantization)
    base = load_base(str(folder), quantization=stored)
    if quantization == "bf16":
        from simulations.benchmarks.dp_step_case import has_bfloat16

        if not has_bfloat16():
            msg = "This processor does not multiply in bfloat16."
            raise UsageError(msg)
        for parameter in base.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return base
