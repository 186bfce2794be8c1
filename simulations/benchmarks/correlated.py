"""Correlated against independent noise, at one epsilon, delta, population and number of rounds.

Closed form first: the root mean square, over rounds, of the noise on a coordinate of the sum of all
rounds so far, in multiples of the clip, after dividing each round by ``population / separation``.
It is what a constant learning rate adds up. Three ways to spend the same budget:

* correlated: cohorts take turns; bands as many as the separation, and the best number of bands;
* independent: the same cohorts, every participation a Gaussian release of its own;
* sampled: secret Poisson cohorts of the same mean size, amplified. The only one of the three whose
  epsilon does not hold against whoever knows who took part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from shared.privacy.calibration import calibrate_noise_multiplier
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.events import NeighboringRelation
from simulations.benchmarks.protocol import BenchResult, Check, Scalar

SUMMARY = "Noise of sums over rounds: correlated, independent and sampled, at equal epsilon."

_DELTA = 1e-6
# Noise is calibrated to a thousandth of epsilon.
_WORST = 1.001
_POPULATION = 10_000
_RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE


def run(*, quick: bool) -> BenchResult:
    """Compute the noise on sums over a grid of rounds, separations and epsilons."""
    rounds = (32, 128) if quick else (32, 128, 512)
    separations = (1, 4, 16) if quick else (1, 4, 8, 16, 32)
    epsilons = (8.0,) if quick else (1.0, 8.0)
    rows = tuple(
        _row(epsilon, number, separation)
        for epsilon in epsilons
        for number in rounds
        for separation in separations
        if separation <= number
    )
    worst = max(float(row["over_independent"] or math.nan) for row in rows)
    return BenchResult(
        name="correlated",
        parameters={"population": _POPULATION, "delta": _DELTA, "quick": quick},
        rows=rows,
        checks=(
            Check(
                name="noise with the best bands over independent noise, worst case",
                measured=worst,
                limit=_WORST,
                unit="x",
            ),
        ),
    )


def prefix_rmse(terms: CorrelatedTerms) -> float:
    """Return the noise on sums over rounds for noise multiplier 1 and clip 1, before dividing.

    The noise on the sums is ``A C^-1 Z``; both matrices are Toeplitz, so a row holds the running
    sums of the first column of C^-1.
    """
    entries = np.square(np.cumsum(terms.inverse(terms.rounds)))
    return terms.sensitivity * math.sqrt(float(np.mean(np.cumsum(entries))))


def best_bands(*, rounds: int, separation: int) -> int:
    """Return the number of bands with the least noise on sums, of powers of two and a few more."""
    tried = {2**k for k in range(rounds.bit_length())} | {separation, rounds}

    def noise(bands: int) -> float:
        terms = CorrelatedTerms(bands=bands, min_separation=separation, rounds=rounds)
        return prefix_rmse(terms)

    return min(sorted(tried), key=noise)


def _row(epsilon: float, rounds: int, separation: int) -> Mapping[str, Scalar]:
    """Return one line of the table."""
    turns = math.ceil(rounds / separation)
    cohort = _POPULATION / separation
    once = _noise(epsilon, 1.0, 1)
    each = _noise(epsilon, 1.0, turns)
    sampled = _noise(epsilon, 1.0 / separation, rounds)
    sums = math.sqrt((rounds + 1) / 2)
    best = best_bands(rounds=rounds, separation=separation)
    found = {
        name: once
        * prefix_rmse(CorrelatedTerms(bands=bands, min_separation=separation, rounds=rounds))
        / cohort
        for name, bands in (("correlated", separation), ("correlated_best", best))
    }
    independent = each * sums / cohort
    amplified = sampled * sums / cohort
    return {
        "epsilon": epsilon,
        "rounds": rounds,
        "separation": separation,
        "participations": turns,
        "bands": separation,
        "best_bands": best,
        "correlated_rmse": found["correlated"],
        "correlated_best_rmse": found["correlated_best"],
        "independent_rmse": independent,
        "sampled_rmse": amplified,
        "over_independent": found["correlated_best"] / independent,
        "over_sampled": found["correlated_best"] / amplified,
    }


@lru_cache(maxsize=256)
def _noise(epsilon: float, probability: float, count: int) -> float:
    """Return the noise multiplier of so many releases at the benchmark's delta."""
    return calibrate_noise_multiplier(
        epsilon=epsilon,
        delta=_DELTA,
        relation=_RELATION,
        sampling_probability=probability,
        count=count,
    )
