"""Gaussian privacy: known answers, independent solvers, extreme mu, and bounds from an attack."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit import gdp, stats
from shared.errors import InvalidValue, TooFewCanaries
from tests.server.audit import oracles

MU = st.floats(1e-3, 60)
DELTA = st.sampled_from([1e-12, 1e-9, 1e-6, 1e-5, 1e-3, 0.1, 0.6])


@pytest.mark.parametrize(
    ("mu", "epsilon"), [(0.5, 1.993091), (1, 4.377178), (2, 9.997256), (3, 16.675494)]
)
def test_known_epsilons(mu: float, epsilon: float) -> None:
    assert gdp.epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize(("epsilon", "mu"), [(1, 0.268051), (4, 0.924931), (8, 1.666031)])
def test_known_mus(epsilon: float, mu: float) -> None:
    assert gdp.mu(epsilon, 1e-5) == pytest.approx(mu, abs=1e-6)


@given(MU, DELTA)
def test_epsilon_agrees_with_dp_accounting(mu: float, delta: float) -> None:
    expected = float(get_epsilon_gaussian(1 / mu, delta))
    assert gdp.epsilon(mu, delta) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(st.floats(0, 20), st.floats(0.05, 6))
def test_delta_is_the_closed_form(epsilon: float, mu: float) -> None:
    expected = oracles.gaussian_delta(epsilon, mu)
    assert gdp.delta(epsilon, mu) == pytest.approx(expected, rel=1e-6, abs=1e-13)


def test_delta_is_the_integral_of_what_exceeds() -> None:
    """Delta is the mass by which N(mu, 1) exceeds e^epsilon N(0, 1), on a fine grid."""
    x = np.linspace(-12, 14, 400_001)
    above = reference.norm.pdf(x - 1.5) - math.exp(2.0) * reference.norm.pdf(x)
    assert gdp.delta(2.0, 1.5) == pytest.approx(np.trapezoid(above.clip(min=0), x), abs=1e-9)


@given(st.floats(0, 300), DELTA)
def test_mu_and_epsilon_undo_each_other(epsilon: float, delta: float) -> None:
    mu = gdp.mu(epsilon, delta)
    assert gdp.delta(epsilon, mu) == pytest.approx(delta, rel=1e-8)
    assert gdp.epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("mu", [1e-6, 1e-3, 30.0, 1e3, 1e5])
def test_extreme_mus_stay_finite_and_ordered(mu: float) -> None:
    """For large mu epsilon is mu^2 / 2 plus a term of order mu; for tiny mu it is zero."""
    found = gdp.epsilon(mu, 1e-5)
    assert found <= gdp.epsilon(mu * 1.01, 1e-5)
    if mu >= 30:
        quantile = -float(reference.norm.ppf(1e-5))
        assert found == pytest.approx(mu * mu / 2 + mu * quantile, rel=2e-3)
    if mu <= 1e-6:
        assert found == 0.0
    assert gdp.delta(found, mu) <= 1e-5 * (1 + 1e-6)


def test_far_tails_have_a_logarithm() -> None:
    """Where delta is below any float; the leading term is -(epsilon / mu - mu / 2)^2 / 2."""
    found = gdp.log_delta(200.0, 1.0)
    assert -(200.0**2) / 2 < found < -(199.0**2) / 2
    assert gdp.delta(200.0, 1.0) == 0.0
    assert gdp.log_delta(1.0, 0.0) == -math.inf


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_numbers_are_refused(bad: float) -> None:
    calls: list[tuple[Callable[[float, float], float], tuple[float, float]]] = [
        (gdp.delta, (bad, 1.0)),
        (gdp.delta, (1.0, bad)),
        (gdp.epsilon, (bad, 1e-5)),
        (gdp.epsilon, (1.0, bad)),
        (gdp.mu, (bad, 1e-5)),
        (gdp.mu, (1.0, bad)),
    ]
    for call, arguments in calls:
        with pytest.raises(InvalidValue):
            call(*arguments)


def test_an_epsilon_beyond_every_mu_is_refused() -> None:
    with pytest.raises(InvalidValue, match="expected a mechanism"):
        gdp.mu(1e300, 1e-5)


def _one(tp: int, fp: int, n: int) -> gdp.Counts:
    return gdp.Counts(
        true_positives=np.array([tp]), false_positives=np.array([fp]), n_in=n, n_out=n
    )


def test_the_published_ratio_bound() -> None:
    """500 of 500 and 0 of 500 at alpha 0.01: 4.54 (TF-privacy's RatioBound; Jagielski 2020)."""
    found = gdp.ratio_lower_bound(_one(500, 0, 500), delta=0.0, alpha=0.01)
    assert found == pytest.approx(4.54, abs=5e-3)


@pytest.mark.parametrize(("m", "epsilon"), [(20, 0.81), (100, 2.57), (1000, 4.91), (10_000, 7.21)])
def test_known_ceilings_of_the_ratio_bound(m: int, epsilon: float) -> None:
    found = gdp.ratio_lower_bound(_one(m // 2, 0, m // 2), delta=1e-5)
    assert found == pytest.approx(epsilon, abs=6e-3)


def test_bounds_follow_from_clopper_pearson() -> None:
    counts = _one(70, 20, 100)
    low_tpr = float(reference.beta.ppf(0.025, 70, 31))
    high_fpr = float(reference.beta.ppf(0.975, 21, 80))
    ratio = max(
        math.log((low_tpr - 1e-3) / high_fpr), math.log((1 - high_fpr - 1e-3) / (1 - low_tpr))
    )
    assert gdp.ratio_lower_bound(counts, delta=1e-3) == pytest.approx(ratio, abs=1e-9)
    mu = float(reference.norm.ppf(low_tpr) - reference.norm.ppf(high_fpr))
    assert gdp.mu_lower_bound(counts) == pytest.approx(mu, abs=1e-9)


def test_several_thresholds_are_paid_for() -> None:
    single = _one(70, 20, 100)
    twice = gdp.Counts(
        true_positives=np.array([70, 70]), false_positives=np.array([20, 20]), n_in=100, n_out=100
    )
    assert gdp.mu_lower_bound(twice) == pytest.approx(gdp.mu_lower_bound(single, alpha=0.025))
    assert gdp.ratio_lower_bound(twice, delta=0.0) == pytest.approx(
        gdp.ratio_lower_bound(single, delta=0.0, alpha=0.025)
    )


def test_a_useless_attack_bounds_nothing() -> None:
    for counts in (_one(10, 10, 20), _one(0, 20, 20), _one(0, 0, 20), _one(20, 20, 20)):
        assert gdp.mu_lower_bound(counts) == 0.0
        assert gdp.ratio_lower_bound(counts, delta=1e-5) == 0.0


def test_a_large_delta_explains_everything() -> None:
    assert gdp.ratio_lower_bound(_one(500, 0, 500), delta=0.999) == 0.0


@pytest.mark.parametrize(("tp", "fp"), [(-1, 0), (0, -1), (21, 0), (0, 21)])
def test_impossible_counts_are_refused(tp: int, fp: int) -> None:
    with pytest.raises(InvalidValue):
        _one(tp, fp, 20)
    with pytest.raises(InvalidValue):
        gdp.Counts(
            true_positives=np.array([], dtype=np.int64),
            false_positives=np.array([], dtype=np.int64),
            n_in=1,
            n_out=1,
        )


SCORES = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=40)


@given(SCORES, SCORES)
def test_the_sweep_counts_what_a_loop_counts(members: list[float], others: list[float]) -> None:
    counts = gdp.sweep(np.array(members), np.array(others))
    expected = []
    for rank in _ranks(len(others)):
        limit = sorted(others, reverse=True)[rank]
        expected.append((sum(s > limit for s in members), rank))
    for rank in _ranks(len(members)):
        limit = sorted(members)[rank]
        expected.append((len(members) - rank, sum(s >= limit for s in others)))
    found = zip(counts.true_positives.tolist(), counts.false_positives.tolist(), strict=True)
    assert list(found) == expected
    # Each pair of counts is reached, or bettered, by a threshold that somebody could use.
    fpr, tpr = stats.roc(np.array(members), np.array(others))
    for right, wrong in expected:
        usable = fpr <= wrong / len(others) + 1e-12
        assert tpr[usable].max() >= right / len(members) - 1e-12


def _ranks(n: int) -> list[int]:
    return [rank for rank in (0, 1, 3, 7, 15, 31) if rank <= n // 2]


def test_the_sweep_needs_two_scores_on_each_side() -> None:
    with pytest.raises(TooFewCanaries):
        gdp.sweep(np.array([1.0]), np.array([1.0, 2.0]))
