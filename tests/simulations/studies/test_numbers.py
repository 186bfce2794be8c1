from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.studies.numbers import Estimate, rank_correlation

FLOATS = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


@given(st.lists(FLOATS, min_size=2, max_size=8))
def test_mean_and_sample_deviation_are_those_of_the_standard_library(values: list[float]) -> None:
    found = Estimate.of(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found.sd == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert found.n == len(values)


def test_what_was_not_measured_is_left_out_and_counted() -> None:
    found = Estimate.of([1.0, None, float("nan"), float("inf"), 3.0])
    assert (found.mean, found.n) == (2.0, 2)
    assert Estimate.of([None]).to_dict() == {"mean": None, "sd": None, "n": 0}


def test_one_seed_has_no_spread_and_says_none() -> None:
    found = Estimate.of([1234.5])
    assert found.sd is None
    assert found.text(1) == "1,234.5"
    assert Estimate.of([]).text(2) == "-"
    assert Estimate.of([1.0, 2.0]).text(2) == "1.50 ± 0.71"


@given(st.permutations(list(range(7))))
def test_rank_correlation_without_ties_is_spearmans_formula(order: list[int]) -> None:
    n = len(order)
    distance = sum((place - rank) ** 2 for place, rank in enumerate(order))
    expected = 1 - 6 * distance / (n * (n * n - 1))
    assert rank_correlation(range(n), [x**3 for x in order]) == pytest.approx(expected)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([], [])])
def test_no_correlation_where_there_is_nothing_to_correlate(x: list[float], y: list[float]) -> None:
    assert rank_correlation(x, y) is None
