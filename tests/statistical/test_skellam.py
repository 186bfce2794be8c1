"""Poisson and Skellam variates against scipy's exact probabilities, under fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from shared.privacy.noise import NoiseSource
from shared.privacy.poisson import poisson

pytestmark = pytest.mark.statistical

ALARM = 1e-4


def _cells(cdf: Callable[[Any], Any], low: float, high: float, cells: int) -> Any:
    """Return integer edges, and the exact probabilities of the cells that they cut."""
    edges = np.unique(np.round(np.linspace(low, high, cells - 1)))
    below = np.concatenate([[0.0], cdf(edges), [1.0]])
    return edges, np.diff(below)


def _pvalue(drawn: np.ndarray, cdf: Callable[[Any], Any], centre: float, spread: float) -> float:
    """Return the chi-square p-value over up to 60 cells, each expected at least 5 times."""
    edges, probabilities = _cells(cdf, centre - 3.3 * spread, centre + 3.3 * spread, 60)
    seen = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=probabilities.size)
    keep = probabilities * drawn.size >= 5
    rest = ~keep
    seen = np.append(seen[keep], seen[rest].sum())
    expected = np.append(probabilities[keep], probabilities[rest].sum()) * drawn.size
    # An empty rest has no expectation and no test.
    return float(stats.chisquare(seen[expected > 0], expected[expected > 0]).pvalue)


@pytest.mark.parametrize(
    "mean", [1e-3, 0.1, 1.0, 3.0, 9.9, 10.1, 14.9, 29.65, 100.0, 1e4, 1e8, 1e12]
)
def test_poisson_numbers_follow_the_exact_law(mean: float) -> None:
    """Chi-square on 400,000 draws; false alarm 1e-4 for each mean and a fresh seed."""
    drawn = poisson(NoiseSource.seeded(31).words, mean, 400_000)
    assert _pvalue(drawn, stats.poisson(mean).cdf, mean, mean**0.5) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("mean", [10.1, 14.9, 29.65, 100.0, 1e8])
def test_poisson_numbers_follow_the_exact_law_closely(mean: float) -> None:
    """The same on 20 million draws, near the means where the published hat is worst."""
    source = NoiseSource.seeded(32)
    drawn = np.concatenate([poisson(source.words, mean, 2_000_000) for _ in range(10)])
    assert _pvalue(drawn, stats.poisson(mean).cdf, mean, mean**0.5) > ALARM


@pytest.mark.parametrize("variance", [0.2, 1.0, 19.8, 20.2, 300.0, 1e4])
def test_skellam_numbers_follow_the_exact_law(variance: float) -> None:
    """Chi-square on 200,000 draws; false alarm 1e-4 for each variance and a fresh seed."""
    drawn = NoiseSource.seeded(33).skellam(variance, 200_000)
    exact = stats.skellam(variance / 2, variance / 2)
    assert _pvalue(drawn, exact.cdf, 0.0, variance**0.5) > ALARM


@pytest.mark.parametrize("variance", [1e8, 1e12, 2.0**52])
def test_large_variances_are_normal(variance: float) -> None:
    """Kolmogorov-Smirnov on 200,000 draws; the law differs from normal by less than 1e-5."""
    drawn = NoiseSource.seeded(34).skellam(variance, 200_000)
    assert stats.kstest(drawn / variance**0.5, "norm").pvalue > ALARM


@pytest.mark.parametrize("shares", [2, 7, 40])
def test_shares_sum_to_the_whole(shares: int) -> None:
    """The sum of n shares of variance V / n is Skellam of variance V; false alarm 1e-4."""
    variance, source = 50.0, NoiseSource.seeded(35, shares)
    total = sum(source.skellam(variance / shares, 100_000) for _ in range(shares))
    exact = stats.skellam(variance / 2, variance / 2)
    assert _pvalue(np.asarray(total), exact.cdf, 0.0, variance**0.5) > ALARM


def _variance_alarm(drawn: np.ndarray, variance: float) -> bool:
    """Two-sided test of the variance at level ``ALARM``, with the exact fourth moment."""
    fourth = 3 * variance**2 + variance
    spread = ((fourth - variance**2) / drawn.size) ** 0.5
    seen = float(np.mean(np.square(drawn.astype(np.float64))))
    limit = float(stats.norm.ppf(1 - ALARM / 2)) * spread
    return bool(abs(seen - variance) > limit)


def test_a_variance_five_percent_too_small_is_caught() -> None:
    """Power: caught in 200 of 200 runs of 40,000 draws; right noise raises at most one alarm.

    5 % of the variance is 7 deviations of its estimate and the alarm is at 3.9, so that a miss has
    probability 1e-3 per run; more than one false alarm in 200 runs has probability 2e-4.
    """
    caught = alarms = 0
    for run in range(200):
        source = NoiseSource.seeded(36, run)
        caught += _variance_alarm(source.skellam(0.95 * 2e5, 40_000), 2e5)
        alarms += _variance_alarm(source.skellam(2e5, 40_000), 2e5)
    assert caught >= 198
    assert alarms <= 1


def test_draws_are_independent_within_and_between_calls() -> None:
    """Correlations of neighbours, halves and calls at 4.06 deviations; false alarm 2e-4."""
    source, n = NoiseSource.seeded(37), 200_000
    first, second = (source.skellam(1e4, n).astype(np.float64) / 100 for _ in range(2))
    for left, right in [(first[1:], first[:-1]), (first, second), (first**2 - 1, second**2 - 1)]:
        spread = float(np.std(left) * np.std(right)) / left.size**0.5
        assert abs(float(np.mean(left * right))) < 4.06 * spread
