"""The f-DP one-run bound: published answers, its order, and what it may not be given."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit import fdp, gdp, guessing, stats
from shared.errors import InvalidValue
from tests.server.audit import oracles


def test_the_known_answer_of_one_count() -> None:
    found = fdp.epsilon_lower_bound(m=1000, guesses=100, correct=90, delta=1e-5)
    assert found == pytest.approx(2.456405, abs=1e-6)


def test_excess_is_the_recursion_written_out() -> None:
    """Algorithm 3 with c' = 3 guesses, c = 2 right, m = 10, step by step."""
    alpha, mu = 0.2, 0.1

    def curve(x: float) -> float:
        return float(reference.norm.cdf(reference.norm.ppf(x) - mu))

    r0, h0 = alpha * 2 / 10, alpha * 1 / 10
    h1 = max(h0, curve(r0))
    r1 = r0 + 1 / 2 * (h1 - h0)
    h2 = max(h1, curve(r1))
    expected = r1 + 0 / 3 * (h2 - h1) + h2 - 3 / 10
    found = fdp.excess(m=10, guesses=3, correct=2, mu=mu, alpha=alpha)
    assert found == pytest.approx(expected, abs=1e-12)


def test_perfect_privacy_is_the_binomial_of_fair_coins() -> None:
    """At mu = 0 a guess is right half the time; the recursion rejects no more than that allows."""
    for guesses in (10, 40, 200):
        smallest = next(
            right
            for right in range(guesses + 1)
            if fdp.excess(m=guesses, guesses=guesses, correct=right, mu=0.0) >= 0
        )
        assert float(reference.binom.sf(smallest - 1, guesses, 0.5)) <= 0.05


@given(st.integers(1, 120), st.data())
def test_more_right_guesses_never_certify_less(guesses: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, guesses - 1))
    bounds = [
        fdp.mu_lower_bound(m=2 * guesses, guesses=guesses, correct=right)
        for right in (correct, correct + 1)
    ]
    assert bounds[1] >= bounds[0] - 1e-7
    rising = [
        fdp.excess(m=2 * guesses, guesses=guesses, correct=correct, mu=mu)
        for mu in (0.0, 0.3, 1.0, 3.0, 9.0)
    ]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(rising))


def test_nothing_right_certifies_nothing() -> None:
    assert fdp.mu_lower_bound(m=100, guesses=20, correct=0) == 0.0
    assert fdp.mu_lower_bound(m=100, guesses=20, correct=10) == 0.0
    assert fdp.epsilon_lower_bound(m=100, guesses=20, correct=10, delta=1e-5) == 0.0


def test_everything_right_certifies_something_finite() -> None:
    found = fdp.mu_lower_bound(m=4000, guesses=4000, correct=4000)
    assert 1 < found < 20


@pytest.mark.parametrize(
    "bad",
    [
        {"m": 0},
        {"guesses": 0},
        {"guesses": 11},
        {"correct": 6},
        {"correct": -1},
        {"mu": -1.0},
        {"mu": math.nan},
        {"alpha": 0.0},
        {"alpha": 1.0},
    ],
)
def test_impossible_input_is_refused(bad: dict[str, float]) -> None:
    good: dict[str, float] = {"m": 10, "guesses": 5, "correct": 3, "mu": 0.5, "alpha": 0.05}
    with pytest.raises(InvalidValue):
        fdp.excess(**{**good, **bad})  # type: ignore[arg-type]


ORDERLY = reference.norm.ppf((np.arange(10_000) + 0.5) / 10_000)
"""Ten thousand scores at the middles of equal slices of a normal distribution."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "one_run", "f_dp", "rates", "gaussian"),
    [
        (1.0, 1.13346, 2.164749, 1.787, 4.335),
        (2.0, 2.311945, 4.7218075, 3.828, 10.24),
        (4.0, 4.395568, 9.133752, 6.413, 24.69),
    ],
)
def test_orderly_normals_give_the_published_bounds(
    shift: float, one_run: float, f_dp: float, rates: float, gaussian: float
) -> None:
    """The numbers that the tests of jax_privacy hold for these scores, at their tolerance.

    Its thresholds are the vertices of the hull of the ROC curve, "in" is guessed for what lies
    above, and alpha is divided by their number. That choice looks at the data, so it is no
    guarantee; the numbers are known answers all the same.
    """
    fpr, tpr = stats.roc_hull(ORDERLY + shift, ORDERLY)
    wrong = np.rint(fpr * ORDERLY.size).astype(np.int64)
    right = np.rint(tpr * ORDERLY.size).astype(np.int64)
    alpha, m, delta = 0.05 / fpr.size, 2 * ORDERLY.size, 1e-6
    counts = [(int(v), int(v + w)) for v, w in zip(right, wrong, strict=True) if v > w]

    certified = 0.0
    for correct, guesses in sorted(counts, key=lambda count: -_precision(*count)):
        p = guessing.p_value(m=m, guesses=guesses, correct=correct, epsilon=certified, delta=delta)
        if p < alpha:
            certified = guessing.epsilon_lower_bound(
                m=m, guesses=guesses, correct=correct, delta=delta, alpha=alpha
            )
    assert certified == pytest.approx(one_run, rel=1e-5)

    mu = 0.0
    for correct, guesses in sorted(counts, key=lambda count: -_precision(*count)):
        if fdp.excess(m=m, guesses=guesses, correct=correct, mu=mu, alpha=alpha) > 0:
            mu = fdp.mu_lower_bound(m=m, guesses=guesses, correct=correct, alpha=alpha)
    assert gdp.epsilon(mu, delta) == pytest.approx(f_dp, rel=1e-5)

    all_counts = gdp.Counts(
        true_positives=right, false_positives=wrong, n_in=ORDERLY.size, n_out=ORDERLY.size
    )
    assert gdp.ratio_lower_bound(all_counts, delta=delta) == pytest.approx(rates, abs=6e-4)
    found = gdp.epsilon(gdp.mu_lower_bound(all_counts), delta)
    assert found == pytest.approx(gaussian, abs=6e-3)
    truth = {1.0: 4.887, 2.0: 10.997, 4.0: 26.357}[shift]
    assert gdp.epsilon(shift, delta) == pytest.approx(truth, abs=6e-4)
    assert certified < oracles.gaussian_epsilon(shift, delta)


def _precision(correct: int, guesses: int) -> float:
    """Clopper-Pearson lower bound on the share of right guesses: the most promising first."""
    low = reference.beta.ppf(0.05, correct, guesses - correct + 1)
    return float(low)
