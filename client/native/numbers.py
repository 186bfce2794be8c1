"""Test vectors of what is computed: noise, coins, clip, a DP-SGD step, and what it costs.

Numbers are decimal text that reads back to the same float64; vectors are float32, little-endian, in
hexadecimal. Noise may differ in its last bits from one mathematical library to another, so what
depends on it is held to a tolerance and everything else to the byte.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.norms import add_scaled, clip_factor, norm_of
from shared.seeding import encode_labels

ORDERS: Final = tuple(range(2, 257))
"""Whole Renyi orders that a device without an accountant of its own minimises over."""

_SEED: Final = 5
_LABELS: Final = ("example-noise", 3, 2)
_TOLERANCE: Final = 1e-12


def numeric_vectors() -> dict[str, Any]:
    """Return the vectors of noise, clip, step and cost."""
    return {
        "noise": _noise(),
        "clip": _clip(),
        "dp_sgd": _dp_sgd(),
        "epsilon": _epsilon(),
    }


def subsampled_gaussian_epsilon(
    *, sampling_probability: float, noise_multiplier: float, releases: int, delta: float
) -> float:
    """Return a bound on epsilon of Poisson-subsampled Gaussian releases, by whole Renyi orders.

    The closed form of Mironov, Talwar and Zhang 2019 (arXiv:1908.10530, section 3.3) for add or
    remove one, converted by Canonne, Kamath and Steinke 2020 (arXiv:2004.00010, proposition 12).
    Simple enough for any language; never below what :mod:`shared.privacy.accountant` reports.

    Args:
        sampling_probability: q in ``(0, 1]``.
        noise_multiplier: noise divided by the clip, > 0.
        releases: how many.
        delta: in ``(0, 1)``.
    """
    q, sigma = sampling_probability, noise_multiplier
    best = math.inf
    for order in ORDERS:
        terms = [
            math.lgamma(order + 1)
            - math.lgamma(k + 1)
            - math.lgamma(order - k + 1)
            + k * math.log(q)
            + (0.0 if order == k else (order - k) * math.log1p(-q) if q < 1 else -math.inf)
            + (k * k - k) / (2 * sigma * sigma)
            for k in range(order + 1)
        ]
        top = max(terms)
        total = top + math.log(math.fsum(math.exp(term - top) for term in terms))
        renyi = releases * total / (order - 1)
        found = renyi + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, found)
    return max(0.0, best)


def _hex(vector: NDArray[Any]) -> str:
    """Write a float32 vector."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes().hex()


def _noise() -> dict[str, Any]:
    """Write a seeded stream: each kind of draw from a source of its own."""
    material = encode_labels("fedslm-noise-v1", _SEED, *_LABELS)

    def source() -> NoiseSource:
        return NoiseSource.seeded(_SEED, *_LABELS)

    twice = source()
    twice.words(1)
    return {
        "seed": _SEED,
        "labels": list(_LABELS),
        "key_material": material.hex(),
        "words": [f"{word:016x}" for word in source().words(5).tolist()],
        "uniform": source().uniform(3).tolist(),
        "normal": source().normal(5).tolist(),
        "second_call": f"{twice.words(1).tolist()[0]:016x}",
        "poisson_subsample": {
            "population": 20,
            "probability": 0.25,
            "taken": source().poisson_subsample(20, 0.25).tolist(),
        },
        "tolerance": _TOLERANCE,
    }


def _clip() -> list[dict[str, Any]]:
    """Write updates before and after the clip of a whole update."""
    rng = np.random.default_rng(_SEED)
    long = rng.standard_normal(9).astype(np.float32)
    broken = long.copy()
    broken[4] = np.nan
    cases = [(long, 1.0), (long, 100.0), (broken, 1.0), (np.zeros(3, dtype=np.float32), 0.5)]
    return [
        {
            "vector": _hex(vector),
            "bound": bound,
            "factor": clip_factor(norm_of(vector), bound),
            "clipped": _hex(clip_update(AdapterDelta(vector=vector), clipping_norm=bound).vector),
        }
        for vector, bound in cases
    ]


def _dp_sgd() -> dict[str, Any]:
    """Write two steps of DP-SGD over given gradients: what a device does without its model.

    The gradient of example i at step t is row ``(t, i)``; the second has a row that is not finite.
    """
    clip, noise, probability, rate, batch = 0.5, 1.25, 0.5, 0.25, 2
    rng = np.random.default_rng(_SEED + 1)
    start = rng.standard_normal(6).astype(np.float32)
    gradients = rng.standard_normal((2, 4, 6)).astype(np.float32)
    gradients[1, :, 3] = np.inf
    source = NoiseSource.seeded(_SEED, *_LABELS)
    moved, taken = start.copy(), []
    for step in gradients:
        rows = source.poisson_subsample(len(step), probability)
        taken.append(rows.tolist())
        total = np.zeros(start.size)
        for row in rows:
            add_scaled(total, step[row], clip_factor(norm_of(step[row]), clip))
        total += noise * clip * source.normal(start.size)
        moved -= np.float32(rate) * (total / batch).astype(np.float32)
    return {
        "max_grad_norm": clip,
        "noise_multiplier": noise,
        "sampling_probability": probability,
        "learning_rate": rate,
        "batch_size": batch,
        "seed": _SEED,
        "labels": list(_LABELS),
        "examples": int(gradients.shape[1]),
        "start": _hex(start),
        "gradients": [[_hex(row) for row in step] for step in gradients],
        "taken": taken,
        "after": _hex(moved),
        "update": _hex(moved - start),
        "tolerance": 1e-6,
    }


def _epsilon() -> list[dict[str, float | int]]:
    """Write what some plans cost by :func:`subsampled_gaussian_epsilon`."""
    plans = [(0.2, 1.0, 2, 1e-5), (0.01, 0.8, 1000, 1e-6), (1.0, 4.0, 5, 1e-5)]
    return [
        {
            "sampling_probability": q,
            "noise_multiplier": sigma,
            "releases": releases,
            "delta": delta,
            "epsilon": subsampled_gaussian_epsilon(
                sampling_probability=q, noise_multiplier=sigma, releases=releases, delta=delta
            ),
        }
        for q, sigma, releases, delta in plans
    ]
