"""Cohorts: Poisson at the probability that is accounted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.cohort import Population, cohort_source, cyclic_cohort, sample_cohort, within_quota
from shared.errors import EmptyPopulation, InvalidValue


def cohorts(count: int, population: int, probability: float) -> list[list[int]]:
    return [
        sample_cohort(
            population,
            probability,
            cohort_source(seed=5, server_round=number, kind="seeded-simulation"),
        )
        for number in range(count)
    ]


def test_sizes_are_binomial_and_clients_are_equal() -> None:
    """Chi-square against Binomial(200, 0.1) and over clients; false alarm 0.1 % each."""
    drawn = cohorts(500, 200, 0.1)
    sizes = np.array([len(cohort) for cohort in drawn])
    edges = [0, 15, 17, 19, 20, 21, 23, 25, 201]
    observed, _ = np.histogram(sizes, bins=edges)
    expected = np.diff(stats.binom.cdf(np.array(edges) - 1, 200, 0.1)) * 500
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3
    taken = np.bincount([client for cohort in drawn for client in cohort], minlength=200)
    statistic = np.sum((taken - 50) ** 2 / (500 * 0.1 * 0.9))
    assert stats.chi2.ppf(0.0005, 200) < statistic < stats.chi2.ppf(0.9995, 200)


def test_an_empty_cohort_happens() -> None:
    assert any(not cohort for cohort in cohorts(200, 10, 0.05))


def test_probability_one_takes_everyone() -> None:
    assert sample_cohort(7, 1.0, cohort_source(seed=0, server_round=1, kind="os-entropy")) == list(
        range(7)
    )


def test_rounds_differ_and_seeds_repeat() -> None:
    assert cohorts(2, 100, 0.5)[0] != cohorts(2, 100, 0.5)[1]
    assert cohorts(2, 100, 0.5) == cohorts(2, 100, 0.5)


def test_quota() -> None:
    assert within_quota([1, 2, 3], {1: 2, 2: 1}, 2) == [2, 3]
    assert within_quota([1, 2], {1: 9}, None) == [1, 2]


def test_population() -> None:
    assert Population(size=3).node(2) == 3
    assert Population(size=3, nodes={2: 77}).node(2) == 77
    assert Population(size=3, nodes={2: 77}).node(0) is None
    with pytest.raises(EmptyPopulation):
        Population(size=0)


@given(
    population=st.integers(1, 60),
    groups=st.integers(1, 12),
    rounds=st.integers(1, 40),
    seed=st.integers(0, 2**64),
)
def test_cyclic_cohorts_keep_the_distance(
    population: int, groups: int, rounds: int, seed: int
) -> None:
    """What correlated noise is calibrated for: turns apart, few of them, groups of bounded size."""
    turns: dict[int, list[int]] = {}
    for number in range(1, rounds + 1):
        cohort = cyclic_cohort(population, groups, number, seed)
        assert cohort == sorted(set(cohort))
        assert population // groups <= len(cohort) <= -(-population // groups)
        for client in cohort:
            turns.setdefault(client, []).append(number)
    assert set(turns) <= set(range(population))
    for taken in turns.values():
        assert len(taken) <= -(-rounds // groups)
        assert set(np.diff(taken)) <= {groups}
    if rounds >= groups:
        assert len(turns) == population


def test_who_is_dealt_with_whom_is_uniform() -> None:
    """Chi-square over the group of client 0 in 700 deals of 70 into 7; false alarm 0.1 %."""
    group = [
        next(number for number in range(1, 8) if 0 in cyclic_cohort(70, 7, number, seed))
        for seed in range(700)
    ]
    assert stats.chisquare(np.bincount(group, minlength=8)[1:]).pvalue > 1e-3


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_cyclic_cohorts_out_of_range_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidValue):
        cyclic_cohort(*bad, seed=0)
