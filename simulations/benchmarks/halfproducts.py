"""What products in bfloat16 cost and save on a base in NF4.

``python -m simulations.benchmarks.halfproducts``. It trains both ways on the embedded demo model,
with a few seeds, and says how far the gradients of single examples move, and what an adapter is
worth that was trained either way. It then says how far an example's neighbours in one pass move its
clipped gradient, which is why :mod:`client.onebyone` gives it none. With ``--shape 30M`` (or 7M,
135M) it times a step on random weights of that shape instead: without a clip, and with the clip of
each example as fedslm takes it. Run it on the processor in question: where it has no instructions
for bfloat16, the rounded numbers are multiplied in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.adapter import AdaptedModel, adapt
from client.clipping import FusedClipper, gradients_of, make_clipper
from client.evaluation import evaluate
from client.examples import Example
from client.losses import collate, per_sequence_losses
from client.model import load_base
from client.training import TrainSettings, train_plain, train_private
from shared.lora import initial_factors
from shared.privacy.noise import NoiseSource
from simulations.benchmarks.dp_step_points import SHAPES
from simulations.benchmarks.footprintmodel import write_base
from simulations.compress.text import generated_text
from simulations.pretrain import DEMO_FOLDER

PRODUCTS = ("float32", "bfloat16")
_SETTINGS = TrainSettings(local_steps=40, batch_size=16, learning_rate=0.5)
_PRIVATE: dict[str, Any] = {
    "max_grad_norm": 1.0,
    "noise_multiplier": 0.1,
    "sampling_probability": 0.5,
}
_LENGTH = 64
_LENGTHS = (5, 21, 32, 57, 64, 64, 9, 20)
_BATCH = 4
_TIMES = 3
_DRAWS = 5


def quality(products: str, seed: int) -> dict[str, Any]:
    """Return what the demo model is worth before and after training, and gradients of it."""
    model = _model(str(DEMO_FOLDER), products, r=4)
    text = generated_text(3)
    rows = {
        use: [
            Example(ids=row, labels=row)
            for row in text.rows(model.base.tokenizer, use, count=16, length=_LENGTH).numpy()
        ]
        for use in ("training", "holdout")
    }
    start = initial_factors(model.spec, seed)
    model.load(start)
    before = math.exp(evaluate(model, rows["holdout"], batch_size=16).loss)
    gradients = [_sum(model, [row], math.inf, alone=True) for row in rows["training"][:4]]
    train_plain(model, rows["training"], _SETTINGS, rng=np.random.default_rng(seed))
    after = math.exp(evaluate(model, rows["training"], batch_size=16).loss)
    model.load(start)
    train_private(model, rows["training"], _SETTINGS, **_PRIVATE, source=NoiseSource.seeded(seed))
    private = math.exp(evaluate(model, rows["training"], batch_size=16).loss)
    return {
        "products": products,
        "seed": seed,
        "perplexity": before,
        "perplexity_trained": after,
        "perplexity_private": private,
        "gradients": torch.stack(gradients),
    }


def compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the largest distance of a gradient from the same seed's in float32."""
    exact = {row["seed"]: row["gradients"] for row in rows if row["products"] == "float32"}
    found = []
    for row in rows:
        one, two = row.pop("gradients"), exact[row["seed"]]
        apart = (one - two).norm(dim=1) / two.norm(dim=1)
        found.append({**row, "gradient_error": float(apart.max())})
    return found


def neighbours(products: str, *, alone: bool) -> dict[str, Any]:
    """Return how far one example more moves the clipped gradients of the others, in bounds.

    The most of some draws of tokens and factors.

    Args:
        products: their precision.
        alone: pass examples one by one, and not all of a batch together.
    """
    model = _model(str(DEMO_FOLDER), products)
    largest = max(_moved(model, seed, alone=alone) for seed in range(_DRAWS))
    return {"products": products, "passes": "alone" if alone else "together", "moved": largest}


def _moved(model: AdaptedModel, seed: int, *, alone: bool) -> float:
    """Return what :func:`neighbours` says for one draw."""
    drawn = np.random.default_rng(seed)
    model.load_vector((0.02 * drawn.standard_normal(model.spec.size("B"))).astype(np.float32), "B")
    rows = [_drawn(drawn, size, len(model.base.tokenizer)) for size in _LENGTHS]
    bound = 0.5 * min(float(_sum(model, [row], math.inf, alone=True).norm()) for row in rows)
    moved = [
        _sum(model, rows[:size], bound, alone=alone)
        - _sum(model, rows[: size - 1], bound, alone=alone)
        - _sum(model, rows[size - 1 : size], bound, alone=alone)
        for size in range(2, len(rows) + 1)
    ]
    return max(float(one.norm()) / bound for one in moved)


def times(folder: str, vocabulary: int, products: str, *, cache: bool) -> dict[str, Any]:
    """Return the processor seconds of a step on a few full examples, the quickest of some."""
    model, rng = _model(folder, products, cache=cache), np.random.default_rng(0)
    batch = collate([_drawn(rng, _LENGTH, vocabulary) for _ in range(_BATCH)], 0)

    def plain() -> object:
        with model.training():
            return gradients_of(model, per_sequence_losses(model.peft_model, batch).sum())

    def clipped() -> object:
        with model.training(), make_clipper("fused", model) as engine:
            return engine.clipped_sum(batch, 1.0)

    return {
        "products": products,
        "cache": "yes" if cache else "no",
        "seconds_plain": _quickest(plain),
        "seconds_clipped": _quickest(clipped),
    }


def _model(folder: str, products: str, *, r: int = 8, cache: bool = True) -> AdaptedModel:
    """Return a base in NF4 with an adapter on every linear layer."""
    base = load_base(folder, quantization="nf4", compute_dtype=products, cache_dequantized=cache)
    model = adapt(base, r=r, alpha=2 * r, target_modules="all-linear")
    model.load(initial_factors(model.spec, 7))
    return model


def _drawn(rng: np.random.Generator, size: int, vocabulary: int) -> Example:
    """Return an example of random tokens."""
    ids = rng.integers(0, vocabulary, size).astype(np.int64)
    return Example(ids=ids, labels=ids)


def _sum(model: AdaptedModel, rows: list[Example], bound: float, *, alone: bool) -> torch.Tensor:
    """Return the flat sum of clipped gradients."""
    with model.training(), FusedClipper(model) as engine:
        groups = [[row] for row in rows] if alone else [rows]
        sums = [engine.clipped_sum(collate(group, 0), bound) for group in groups]
    return torch.stack([torch.cat([o.reshape(-1) for o in found]) for found in sums]).sum(dim=0)


def _quickest(take: Callable[[], object]) -> float:
    """Return the fewest processor seconds of some calls after a first one."""
    take()
    spent = []
    for _ in range(_TIMES):
        began = time.process_time()
        take()
        spent.append(time.process_time() - began)
    return min(spent)


def measured(shape: str | None, seeds: int) -> list[list[dict[str, Any]]]:
    """Return the tables of one run.

    Args:
        shape: of random weights to time; None for quality and neighbours on the demo model.
        seeds: how often it is trained.
    """
    if shape is None:
        rows = [quality(products, seed) for seed in range(seeds) for products in PRODUCTS]
        moved = [neighbours(p, alone=alone) for p in PRODUCTS for alone in (False, True)]
        return [compare(rows), moved]
    with tempfile.TemporaryDirectory(prefix="fedslm-half-") as room:
        folder = Path(room) / shape
        write_base(folder, SHAPES[shape])
        vocabulary = SHAPES[shape].vocabulary
        both = [(cache, products) for cache in (True, False) for products in PRODUCTS]
        return [[times(str(folder), vocabulary, p, cache=cache) for cache, p in both]]


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(description="Products in bfloat16 on a base in NF4.")
    parser.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    said = parser.parse_args()
    torch.set_num_threads(1)
    tables = measured(said.shape, said.seeds)
    if said.json:
        sys.stdout.write(json.dumps(tables) + "\n")
        return
    for rows in tables:
        names = list(rows[0])
        lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
        for row in rows:
            cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
            lines.append("| " + " | ".join(cells) + " |")
        sys.stdout.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
