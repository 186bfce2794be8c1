"""Paired tests and intervals against scipy, enumeration and exact coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.audit.promptleak import paired
from shared.errors import InvalidValue


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_a_fair_coin(gained: int, lost: int) -> None:
    expected = 1.0
    if gained + lost:
        test = stats.binomtest(gained, gained + lost, 0.5, alternative="greater")
        expected = test.pvalue
    assert paired.mcnemar_p_value(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_wilson_is_scipys() -> None:
    for k, n in ((0, 7), (3, 24), (24, 24), (50, 100)):
        known = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
        assert paired.wilson(k, n, alpha=0.1) == pytest.approx((known.low, known.high), abs=1e-12)


def test_the_interval_of_independent_halves_by_hand() -> None:
    # Table with phi = 0: 6, 6, 6, 6. Then method 10 is the square-and-add of two Wilson intervals.
    low, high = paired.wilson(12, 24, alpha=0.05)
    half = math.hypot(0.5 - low, high - 0.5)
    found = paired.paired_interval(both=6, gained=6, lost=6, neither=6, alpha=0.05)
    assert found == pytest.approx((-half, half), abs=1e-12)


def test_an_interval_is_no_point_where_nothing_leaks() -> None:
    low, high = paired.paired_interval(both=0, gained=0, lost=0, neither=24, alpha=0.05)
    assert -0.2 < low < -0.1 < 0.1 < high < 0.2
    assert low == pytest.approx(-high)


def test_the_interval_turns_with_the_sides() -> None:
    low, high = paired.paired_interval(both=5, gained=7, lost=2, neither=10, alpha=0.05)
    other = paired.paired_interval(both=5, gained=2, lost=7, neither=10, alpha=0.05)
    assert other == pytest.approx((-high, -low), abs=1e-12)
    assert low < 5 / 24 < high


@pytest.mark.parametrize(
    "cells", [(0.0, 0.1, 0.02), (0.3, 0.2, 0.1), (0.5, 0.05, 0.05), (0.1, 0.4, 0.05)]
)
def test_the_interval_covers_about_as_often_as_it_says(cells: tuple[float, ...]) -> None:
    # Exact coverage by enumeration of the multinomial with 14 prompts; nominal 95 %.
    n = 14
    p = (*cells, 1 - sum(cells))
    covered = 0.0
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        d = n - a - b - c
        if d < 0:
            continue
        low, high = paired.paired_interval(both=a, gained=b, lost=c, neither=d, alpha=0.05)
        if low - 1e-12 <= p[1] - p[2] <= high + 1e-12:
            covered += float(stats.multinomial.pmf((a, b, c, d), n, p))
    assert 0.92 <= covered <= 1.0


def test_flipped_signs_by_enumeration() -> None:
    values = np.array([0.5, 0.25, -0.125, 0.0, 1.0])
    sums = [
        float(np.dot(signs, values[values != 0])) for signs in itertools.product((-1, 1), repeat=4)
    ]
    expected = sum(total >= values.sum() - 1e-12 for total in sums) / 16
    assert paired.sign_flip_p_value(values, seed=0) == expected
    assert paired.sign_flip_p_value(np.zeros(5), seed=0) == 1.0


def test_many_differences_are_drawn_and_agree_with_scipy() -> None:
    values = np.random.default_rng(4).normal(0.25, 1.0, size=30)
    found = paired.sign_flip_p_value(values, seed=1)
    known = stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        alternative="greater",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    )
    assert found == pytest.approx(known.pvalue, abs=0.02)
    assert paired.sign_flip_p_value(np.ones(40), seed=1) == 1e-4


def test_holm_stops_at_the_first_that_stands() -> None:
    assert paired.holm({"a": 0.01, "b": 0.02, "c": 0.2}, alpha=0.05) == ["a", "b"]
    assert paired.holm({"a": 0.02, "b": 0.02, "c": 0.02}, alpha=0.05) == []
    assert paired.holm({}, alpha=0.05) == []


def test_counts_are_counts() -> None:
    with pytest.raises(InvalidValue, match="gained=-1"):
        paired.mcnemar_p_value(-1, 2)
    with pytest.raises(InvalidValue, match="lost=True"):
        paired.mcnemar_p_value(1, True)
    with pytest.raises(InvalidValue, match="pairs=0"):
        paired.paired_interval(both=0, gained=0, lost=0, neither=0, alpha=0.05)
    with pytest.raises(InvalidValue, match="alpha"):
        paired.paired_interval(both=0, gained=0, lost=0, neither=3, alpha=1.0)
