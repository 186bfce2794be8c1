"""The theorem behind the one-run audit: known answers, the formula term by term, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit.guessing import (
    correct_guesses,
    epsilon_lower_bound,
    guesses_per_side,
    p_value,
)
from shared.errors import InvalidValue


@pytest.mark.parametrize(
    ("m", "guesses", "correct", "delta", "epsilon"),
    [
        (1000, 100, 90, 1e-5, 1.626143),
        (1000, 500, 300, 1e-5, 0.251205),
        (100, 100, 100, 0.0, 3.492965),
        (5000, 1000, 900, 1e-5, 2.018259),
        (1000, 1000, 500, 1e-5, 0.0),
        (1000, 200, 200, 1e-5, 4.166490),
    ],
)
def test_known_lower_bounds(
    m: int, guesses: int, correct: int, delta: float, epsilon: float
) -> None:
    found = epsilon_lower_bound(m=m, guesses=guesses, correct=correct, delta=delta)
    assert found == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize(("epsilon", "expected"), [(1.0, 8.41289e-4), (2.0, 0.344987)])
def test_known_p_values(epsilon: float, expected: float) -> None:
    found = p_value(m=1000, guesses=100, correct=90, epsilon=epsilon, delta=1e-5)
    assert found == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("m", "everyone", "half"),
    [
        (20, 1.82, None),
        (50, 2.78, 2.06),
        (100, 3.49, 2.78),
        (200, 4.19, 3.49),
        (500, 5.10, 4.41),
        (1000, 5.78, 5.09),
        (2000, 6.45, 5.76),
        (5000, 7.28, 6.59),
        (10_000, 7.83, 7.14),
    ],
)
def test_known_ceilings(m: int, everyone: float, half: float | None) -> None:
    found = epsilon_lower_bound(m=m, guesses=m, correct=m, delta=1e-5)
    assert found == pytest.approx(everyone, abs=6e-3)
    if half is not None:
        found = epsilon_lower_bound(m=m, guesses=m // 2, correct=m // 2, delta=1e-5)
        assert found == pytest.approx(half, abs=6e-3)


@given(
    guesses=st.integers(1, 60),
    data=st.data(),
    epsilon=st.floats(0, 6),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
)
def test_p_value_is_the_formula_term_by_term(
    guesses: int, data: st.DataObject, epsilon: float, delta: float
) -> None:
    correct, m = data.draw(st.integers(0, guesses)), 2 * guesses
    coin = reference.binom(guesses, math.exp(epsilon) / (1 + math.exp(epsilon)))
    beta = float(coin.sf(correct - 1))
    worst = max(
        (float(sum(coin.pmf(range(correct - i, correct)))) / i for i in range(1, correct + 1)),
        default=0.0,
    )
    expected = min(1.0, beta + 2 * m * delta * worst)
    found = p_value(m=m, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(expected, abs=1e-9)


def test_no_right_guess_is_no_evidence() -> None:
    """A published implementation gives p = 0 here, which is a violation out of nothing."""
    assert p_value(m=100, guesses=50, correct=0, epsilon=0.0, delta=1e-5) == 1.0
    assert epsilon_lower_bound(m=100, guesses=50, correct=0, delta=1e-5) == 0.0


@pytest.mark.parametrize(("m", "guesses", "correct"), [(10, 11, 5), (10, 5, 6), (0, 0, 0)])
def test_impossible_counts_are_refused(m: int, guesses: int, correct: int) -> None:
    with pytest.raises(InvalidValue):
        p_value(m=m, guesses=guesses, correct=correct, epsilon=1.0, delta=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_bad_hypotheses_are_refused(bad: float) -> None:
    with pytest.raises(InvalidValue):
        p_value(m=10, guesses=4, correct=2, epsilon=bad, delta=0.0)


def test_the_number_of_guesses_follows_from_m_alone() -> None:
    assert [guesses_per_side(m) for m in (8, 200, 999, 1000, 5000)] == [1, 25, 124, 100, 500]


def test_guesses_name_the_extremes() -> None:
    members, others = np.array([9.0, 8, 1]), np.array([0.0, 2, 7])
    assert correct_guesses(members, others, per_side=1, seed=0) == 2
    assert correct_guesses(others, members, per_side=1, seed=0) == 0
    with pytest.raises(InvalidValue):
        correct_guesses(members, others, per_side=4, seed=0)


def test_the_bound_is_where_the_p_value_reaches_alpha() -> None:
    counts = {"m": 400, "guesses": 100, "correct": 80}
    bound = epsilon_lower_bound(**counts, delta=1e-5, alpha=0.02)
    below = p_value(**counts, epsilon=bound - 1e-6, delta=1e-5)
    above = p_value(**counts, epsilon=bound + 1e-6, delta=1e-5)
    assert below < 0.02 <= above


@given(st.integers(1, 200), st.data(), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_p_rises_with_epsilon_and_falls_with_right_guesses(
    guesses: int, data: st.DataObject, delta: float
) -> None:
    correct = data.draw(st.integers(0, guesses - 1))

    def p(right: int, epsilon: float) -> float:
        return p_value(m=guesses, guesses=guesses, correct=right, epsilon=epsilon, delta=delta)

    values = [p(correct, epsilon) for epsilon in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(values))
    assert p(correct + 1, 1.0) <= p(correct, 1.0) + 1e-12
