"""Oracles: mpmath at 60 digits for probabilities, and the conditions of the rejection proof."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest

from shared.errors import InvalidValue
from shared.privacy import poisson
from shared.privacy.noise import NoiseSource
from shared.privacy.poisson import hat, log_probability

mpmath: Any = pytest.importorskip("mpmath", reason="mpmath comes with torch")

MEANS = [
    10.0,
    10.1,
    15.9,
    16.5,
    99.99,
    1e3,
    12345.678,
    1e6,
    1e8,
    1e10,
    1e13,
    2.0**52 - 0.5,
    2.0**52,
]


@pytest.mark.parametrize("mean", MEANS)
def test_logarithms_of_probabilities_are_exact_at_every_mean(mean: float) -> None:
    spread, whole = math.sqrt(mean), math.floor(mean)
    steps = np.concatenate([np.linspace(-12, 12, 61) * spread, np.arange(-20.0, 21.0)])
    distance = np.unique(np.round(steps))
    distance = distance[distance >= -whole]
    ours = log_probability(mean, distance)
    with mpmath.workdps(60):
        for d, value in zip(distance, ours, strict=True):
            k = whole + int(d)
            exact = k * mpmath.log(mean) - mean - mpmath.loggamma(k + 1)
            assert abs(mpmath.mpf(float(value)) - exact) < 1e-12


def test_the_textbook_formula_would_not_do() -> None:
    """At a mean of 1e13, k log(mean) - mean - lgamma(k+1) in float64 is off by over 0.01."""
    mean, k = 1e13, 10**13 + 3 * 10**6
    naive = k * math.log(mean) - mean - math.lgamma(k + 1)
    ours = float(log_probability(mean, np.array([k - mean]))[0])
    assert abs(naive - ours) > 0.01


def test_hat_and_squeeze_are_what_the_rejection_proof_needs() -> None:
    """Product at most 1; above the squeeze inside; at most r in the tail that is cut off early."""
    near = 10.0 ** np.linspace(-15, -3, 500)
    u = np.concatenate([np.linspace(-0.5, 0.5, 4_001)[1:-1], -0.5 + near, 0.5 - near])
    r = 0.5 - np.abs(u)
    means = [*np.arange(10, 60, 0.13), *np.geomspace(60, 1e5, 120), *MEANS]
    for mean in map(float, means):
        a, b, inverse_alpha, squeeze = hat(mean)
        whole = math.floor(mean)
        distance = np.floor((2 * a / r + b) * u + (mean - whole + 0.43))
        inside = distance >= -whole
        product = np.zeros(u.size)
        product[inside] = np.exp(log_probability(mean, distance[inside]))
        product *= (a / r**2 + b) / inverse_alpha
        assert product.max() <= 1.0
        assert product[r >= 0.07].min() >= squeeze
        assert (product[r < 0.013] <= r[r < 0.013]).all()


@pytest.mark.parametrize("mean", [1e-9, 1e-3, 0.1, 1.0, 3.3, 9.999])
def test_small_means_invert_the_exact_distribution_function(mean: float) -> None:
    thresholds = poisson._thresholds(mean).tolist()
    with mpmath.workdps(60):
        total = mpmath.mpf(0)
        for k, threshold in enumerate(thresholds):
            total += mpmath.exp(-mean) * mpmath.mpf(mean) ** k / mpmath.factorial(k)
            assert threshold == min(int(total * 2**64), 2**64 - 1)
        assert (1 - total) * 2**64 < 2
    words = np.array([0, thresholds[0] - 1, thresholds[0], 2**64 - 1], dtype=np.uint64)
    drawn = poisson.poisson(lambda n: np.resize(words, n), mean, 4)
    assert drawn[:3].tolist() == [0, 0, 1]
    assert drawn[3] in {len(thresholds) - 1, len(thresholds)}


@pytest.mark.parametrize("mean", [0.5, 9.9, 10.1, 1e6])
@pytest.mark.parametrize("n", [0, 1, 17, 32_767, 70_000])
def test_as_many_as_asked(mean: float, n: int) -> None:
    drawn = poisson.poisson(NoiseSource.seeded(1).words, mean, n)
    assert drawn.shape == (n,)
    assert drawn.dtype == np.int64
    assert (drawn >= 0).all()


def test_extreme_words_give_finite_numbers() -> None:
    """All zeros and all ones put the candidate at the ends of the hat: nothing overflows."""
    ends = (0, 2**64 - 1, 2**63, 2**63 - 1, 1 << 11)
    for mean, first, second in itertools.product((10.0, 1e4, 2.0**52), ends, ends):
        rest = NoiseSource.seeded(2)

        def words(n: int, ends: Any = (first, second), rest: NoiseSource = rest) -> Any:
            drawn = rest.words(n).copy()
            drawn[: n // 2 : 5], drawn[n // 2 :: 5] = ends
            return drawn

        drawn = poisson.poisson(words, mean, 200)
        assert (np.abs(drawn - mean) <= 40 * math.sqrt(mean) + 40).all()


@pytest.mark.parametrize("mean", [0, -1.0, math.nan, math.inf, 2.0**52 * 1.01, True, "3", None])
def test_a_mean_out_of_range_is_refused(mean: Any) -> None:
    with pytest.raises(InvalidValue, match="mean="):
        poisson.poisson(NoiseSource.seeded(1).words, mean, 1)


def test_a_million_skellam_numbers_take_well_under_a_second() -> None:
    source = NoiseSource.from_os()
    start = time.process_time()
    source.skellam(2e8, 1_000_000)
    assert time.process_time() - start < 1.0
