"""What products in bfloat16 cost and save on a quantised base.

``python -m simulations.benchmarks.halfproducts``. fedslm computes in float32 whatever the base is
stored in. QLoRA's usual advice is bfloat16. This trains both ways on the embedded demo model and
says how far the gradients of single examples move, what an adapter is worth that was trained either
way, and how long a step takes. Run it on the processor in question: without instructions for
bfloat16 it is emulated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from client.adapter import AdaptedModel, adapt
from client.clipping import gradients_of
from client.evaluation import evaluate
from client.examples import Example
from client.losses import collate, per_sequence_losses
from client.model import load_base
from client.training import TrainSettings, train_plain
from shared.lora import initial_factors
from simulations.compress.text import generated_text
from simulations.pretrain import DEMO_FOLDER

_STORAGES = ("none", "nf4")
_PRODUCTS = ("float32", "bfloat16")
_SETTINGS = TrainSettings(local_steps=40, batch_size=16, learning_rate=0.5)
_LENGTH = 64
_TIMES = 5


def precision(products: str) -> AbstractContextManager[Any]:
    """Return the context that products are taken in."""
    half = products == "bfloat16"
    return torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()


def measure(storage: str, products: str) -> dict[str, Any]:
    """Return the numbers of one storage and one precision, the gradients included."""
    base = load_base(str(DEMO_FOLDER), quantization=storage, cache_dequantized=True)
    model = adapt(base, r=4, alpha=8, target_modules="all-linear")
    factors = initial_factors(model.spec, 7)
    model.load(factors)
    text = generated_text(3)
    rows = {
        use: [
            Example(ids=row, labels=row)
            for row in text.rows(base.tokenizer, use, count=16, length=_LENGTH).numpy()
        ]
        for use in ("training", "holdout")
    }
    with precision(products):
        before = math.exp(evaluate(model, rows["holdout"], batch_size=16).loss)
        gradients = [_gradient(model, row) for row in rows["training"][:4]]
        seconds = min(_step(model, rows["training"]) for _ in range(_TIMES))
        train_plain(model, rows["training"], _SETTINGS, rng=np.random.default_rng(0))
    # What the adapter is worth is read in float32, as whoever uses it would.
    after = math.exp(evaluate(model, rows["training"], batch_size=16).loss)
    return {
        "storage": storage,
        "products": products,
        "perplexity": before,
        "perplexity_trained": after,
        "seconds_per_step": seconds,
        "gradients": torch.stack(gradients),
    }


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with each gradient's distance from the same storage's in float32."""
    exact = {row["storage"]: row["gradients"] for row in rows if row["products"] == "float32"}
    found = []
    for row in rows:
        one, two = row.pop("gradients"), exact[row["storage"]]
        apart = (one - two).norm(dim=1) / two.norm(dim=1)
        found.append({**row, "gradient_error": float(apart.max())})
    return found


def _gradient(model: AdaptedModel, row: Example) -> torch.Tensor:
    """Return the flat gradient of one example."""
    batch = collate([row], 0)
    found = gradients_of(model, per_sequence_losses(model.peft_model, batch).sum())
    return torch.cat([one.detach().float().reshape(-1) for one in found])


def _step(model: AdaptedModel, rows: list[Example]) -> float:
    """Return the processor seconds of one way there and back."""
    batch, start = collate(rows, 0), time.process_time()
    gradients_of(model, per_sequence_losses(model.peft_model, batch).sum())
    return time.process_time() - start


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="Products in bfloat16 on a quantised base.")
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    rows = compare([measure(storage, kind) for storage in _STORAGES for kind in _PRODUCTS])
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = (v if isinstance(v, str) else f"{v:.4g}" for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
