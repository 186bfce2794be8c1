"""Tests of noise that should be independent, standard, and of a known law."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from server.audit.conformance import Test, two_sided
from server.audit.evidence import integer, number, numbers, stored
from server.audit.protocol import Floats

LARGEST_EXACT_VARIANCE = 10_000.0
"""Skellam noise is compared with its exact law up to here, with the normal one beyond."""

_DIGITS = 9


def noise_statistics(rows: Floats, *, variance: float | None = None) -> dict[str, Any]:
    """Return what the tests need to know of some rows of noise.

    Args:
        rows: shape ``(R, d)``, noise alone, divided by its declared standard deviation.
        variance: V of Skellam noise on the integer grid; None for Gaussian noise.
    """
    count, width = rows.shape
    norms = np.linalg.norm(rows, axis=1)
    # Rows of zeros have no direction: their correlation counts as none, their length as too short.
    unit = rows / np.where(norms > 0, norms, 1.0)[:, None]
    pairs = (unit @ unit.T)[np.triu_indices(count, 1)]
    lags = _lags(width)
    along = [float((rows[:, lag:] * rows[:, : width - lag]).sum()) for lag in lags]
    total = float(np.square(rows).sum())
    return {
        "rounds": count,
        "dimension": width,
        "kurtosis": 0.0 if variance is None else 1.0 / variance,
        "mean": round(float(rows.mean()), _DIGITS + 3),
        "energies": stored(np.square(norms), digits=_DIGITS - 3),
        "distance": round(_distance(rows.ravel(), variance), _DIGITS),
        "correlation": round(float(np.abs(pairs).max(initial=0.0)), _DIGITS),
        "lags": len(lags),
        "lag_correlation": round(max(map(abs, along)) / total if total > 0 else 0.0, _DIGITS),
    }


def noise_tests(evidence: Mapping[str, Any], *, who: str) -> tuple[Test, ...]:
    """Test that noise has its declared size and law, and that nothing in it repeats.

    Args:
        evidence: from :func:`noise_statistics`.
        who: whose noise, for the sentences.

    Raises:
        AuditError: if the evidence is malformed.
    """
    rounds = integer(evidence, "rounds", low=1)
    width = integer(evidence, "dimension", low=2)
    scale = 2.0 / (2.0 + number(evidence, "kurtosis", low=0.0))
    energies = numbers(evidence, "energies", size=rounds)
    cells = rounds * width
    size = two_sided(*_tails(float(energies.sum()), cells, scale))
    worst = min(two_sided(*_tails(energy, width, scale)) for energy in energies)
    mean = 2.0 * special.ndtr(-abs(number(evidence, "mean")) * math.sqrt(cells))
    distance = number(evidence, "distance", low=0.0, high=1.0)
    between = number(evidence, "correlation", low=0.0)
    along = number(evidence, "lag_correlation", low=0.0)
    lags = integer(evidence, "lags", low=1)
    pairs = rounds * (rounds - 1) // 2
    return (
        Test(name="size", p=size, broken=f"{who} has another size than the plan declares."),
        Test(
            name="size of a round",
            p=min(1.0, rounds * worst),
            broken=f"{who} has another size in some round than the plan declares.",
        ),
        Test(name="mean", p=float(mean), broken=f"{who} is not centred at zero."),
        Test(
            name="law",
            p=float(special.kolmogorov(math.sqrt(cells) * distance)),
            broken=f"{who} does not have the declared distribution.",
        ),
        Test(
            name="rounds",
            p=_largest_of(pairs, between * math.sqrt(width)),
            broken=f"{who} of one round is correlated with that of another: noise is used twice.",
        ),
        Test(
            name="coordinates",
            p=_largest_of(lags, along * math.sqrt(cells)),
            broken=f"{who} on one coordinate is correlated with that on another.",
        ),
    )


def _distance(sample: Floats, variance: float | None) -> float:
    """Return the Kolmogorov-Smirnov distance to the declared law.

    For integers the distribution functions are compared between the integers, which makes the
    distance no larger than for a continuous law, and the test conservative.
    """
    values = np.sort(sample)
    if variance is None:
        reached = special.ndtr(values)
        steps = np.arange(values.size + 1) / values.size
        return float(max((steps[1:] - reached).max(), (reached - steps[:-1]).max()))
    stddev = math.sqrt(variance)
    integers, counts = np.unique(np.rint(values * stddev), return_counts=True)
    reached = np.cumsum(counts) / values.size
    return float(np.abs(reached - _skellam_below(integers, variance)).max())


def _skellam_below(integers: Floats, variance: float) -> Floats:
    """Return ``P[N <= k]`` for symmetric Skellam N of a variance; ``e^-V I_k(V)`` is its law."""
    if variance > LARGEST_EXACT_VARIANCE:
        return np.asarray(special.ndtr((integers + 0.5) / math.sqrt(variance)), dtype=np.float64)
    reach = max(math.ceil(16.0 * math.sqrt(variance)) + 16, int(np.abs(integers).max()))
    support = np.arange(-reach, reach + 1)
    below = np.cumsum(special.ive(np.abs(support), variance))
    return np.asarray(below[(integers + reach).astype(np.int64)], dtype=np.float64)


def _lags(width: int) -> list[int]:
    """Return the distances between coordinates that are compared: powers of two."""
    return [1 << power for power in range(max(1, (width - 1).bit_length() - 1))]


def _tails(length: float, freedom: float, scale: float) -> tuple[float, float]:
    """Return both tails of a sum of squares."""
    return (
        float(special.chdtr(scale * freedom, scale * length)),
        float(special.chdtrc(scale * freedom, scale * length)),
    )


def _largest_of(count: int, z: float) -> float:
    """Return the corrected two-sided p-value of the largest of several normal scores."""
    return min(1.0, count * 2.0 * float(special.ndtr(-z))) if count else 1.0
