"""Sampling that runs is sampling that is accounted: independent coins of the stated bias."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shared.privacy.noise import NoiseSource

pytestmark = pytest.mark.statistical

ALARM = 1e-4
POPULATION, RATE, ROUNDS = 500, 0.06, 4000


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """Inclusion of each unit (columns) in each round (rows)."""
    source = NoiseSource.seeded(21)
    included = np.zeros((ROUNDS, POPULATION), dtype=bool)
    for row in included:
        row[source.poisson_subsample(POPULATION, RATE)] = True
    return included


def test_the_rate_is_the_stated_one(draws: np.ndarray) -> None:
    """Exact binomial test over two million coins; false alarm 1e-4."""
    test = stats.binomtest(int(draws.sum()), draws.size, RATE)
    assert test.pvalue > ALARM


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.5, 0.999])
def test_the_rate_holds_in_a_large_population(rate: float) -> None:
    """Exact binomial test over a million coins, block edges included; false alarm 1e-4 each."""
    taken = NoiseSource.seeded(22, str(rate)).poisson_subsample(1_000_003, rate)
    assert stats.binomtest(taken.size, 1_000_003, rate).pvalue > ALARM


def test_every_unit_has_the_same_rate(draws: np.ndarray) -> None:
    """Chi-square over 500 units; false alarm 1e-4."""
    seen = draws.sum(axis=0)
    statistic = np.sum((seen - ROUNDS * RATE) ** 2) / (ROUNDS * RATE * (1 - RATE))
    assert ALARM / 2 < stats.chi2.sf(statistic, POPULATION) < 1 - ALARM / 2


def test_peers_bug_expected_instead_of_actual_participation(draws: np.ndarray) -> None:
    """The cohort's size varies as binomial, not fixed at its mean: variance test, alarm 1e-4.

    A sampler that takes exactly q * n units, or that shuffles and cuts batches, has variance 0.
    """
    sizes = draws.sum(axis=1)
    ratio = np.var(sizes) * ROUNDS / (POPULATION * RATE * (1 - RATE))
    assert ALARM / 2 < stats.chi2.sf(ratio, ROUNDS - 1) < 1 - ALARM / 2


def test_units_and_rounds_are_independent(draws: np.ndarray) -> None:
    """Correlation of neighbouring units and of neighbouring rounds; false alarm 1e-4 together."""
    centred = (draws - RATE) / np.sqrt(RATE * (1 - RATE))
    for left, right in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs(float(np.mean(left * right))) < 4.06 / np.sqrt(left.size)


def test_peers_bug_a_random_example_in_place_of_an_empty_batch() -> None:
    """Empty samples occur at their rate (1 - q)**n, exact binomial test; false alarm 1e-4."""
    source = NoiseSource.seeded(23)
    empty = sum(source.poisson_subsample(40, 0.05).size == 0 for _ in range(5000))
    assert stats.binomtest(empty, 5000, 0.95**40).pvalue > ALARM


def test_peers_bug_shuffled_batches_accounted_as_poisson(draws: np.ndarray) -> None:
    """Units come back before everyone had a turn: no epoch has each unit exactly once."""
    epoch = round(1 / RATE)
    counts = draws[:epoch].sum(axis=0)
    assert counts.min() == 0
    assert counts.max() >= 3
