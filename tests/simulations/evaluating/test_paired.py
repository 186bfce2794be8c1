"""Statistics against scipy and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulations.evaluating.paired import (
    difference,
    discordant,
    holm,
    interval_of,
    score,
    sign_test,
    worst_decile,
)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert sign_test(lost, won) == pytest.approx(expected, rel=1e-9)


def test_many_pairs_are_no_trouble() -> None:
    assert sign_test(33_000, 34_000) == pytest.approx(
        stats.binomtest(33_000, 67_000, 0.5).pvalue, rel=1e-6
    )


def test_discordant_pairs_are_counted_by_direction() -> None:
    found = discordant([True, True, False, False, True], [True, False, True, False, False])
    assert (found["only_before"], found["only_after"]) == (2, 1)
    assert found["p"] == pytest.approx(1.0)


def test_holm_is_the_textbooks() -> None:
    # Holm's step-down by hand: 4 x 0.01, 3 x 0.01 raised to 0.04, 2 x 0.03, 1 x 0.04 raised.
    assert holm([0.01, 0.04, 0.03, 0.01]) == pytest.approx([0.04, 0.06, 0.06, 0.04])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_scores_and_paired_differences() -> None:
    before, after = [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    assert score(before) == {"score": 0.5, "se": pytest.approx(stats.sem(before))}
    found = difference(before, after)
    error = float(stats.sem(np.subtract(after, before)))
    assert found["mean"] == 0.25
    assert found["se"] == pytest.approx(error)
    assert found["ci95"] == pytest.approx(stats.norm.interval(0.95, 0.25, error))
    assert score([1.0])["se"] is None
    assert difference([1.0], [2.0])["ci95"] is None


def test_the_worst_tenth_is_rounded_up() -> None:
    assert worst_decile([1.0, 2.0, 3.0]) == 3.0
    assert worst_decile(list(range(20))) == 18.5


def test_the_bootstrap_keeps_pairs_together() -> None:
    before = [3.0, 4.0, 5.0, 9.0, 1.0]
    same = interval_of(before, [value - 1 for value in before], "worst_decile", seed=0)
    assert same == pytest.approx([-1.0, -1.0])
    assert interval_of([1.0], [2.0], "worst_decile", seed=0) is None
    assert math.isfinite(sum(interval_of(before, before[::-1], "worst_decile", seed=0) or ()))
