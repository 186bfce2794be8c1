from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from shared.errors import CalibrationError, InvalidValue
from shared.privacy.accountant import ONLINE, REPORT, epsilon_of
from shared.privacy.calibration import (
    _first,
    calibrate,
    calibrate_count,
    calibrate_noise_multiplier,
    largest_count,
)
from shared.privacy.events import (
    ComposedEvent,
    GaussianEvent,
    NeighboringRelation,
    PrivacyEvent,
    SkellamEvent,
)
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from tests.shared.privacy.test_losses import THEIRS

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = NeighboringRelation.REPLACE_ONE
GOOD: dict[str, Any] = {
    "epsilon": 2.0,
    "delta": 1e-5,
    "relation": ADD,
    "sampling_probability": 0.1,
    "count": 10,
}


def spent(z: float, args: dict[str, Any]) -> float:
    event = GaussianEvent(
        noise_multiplier=z, sampling_probability=args["sampling_probability"], count=args["count"]
    )
    return epsilon_of(event, delta=args["delta"], relation=args["relation"])


@pytest.mark.slow
@pytest.mark.traced
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"relation": REPLACE},
        {"epsilon": 0.3, "sampling_probability": 0.01, "count": 1000},
        {"epsilon": 8.0, "sampling_probability": 1.0, "count": 20},
        {"epsilon": 0.05, "delta": 1e-8, "count": 3},
        {"epsilon": 5.0, "delta": 1e-3, "count": 2},
    ],
)
def test_the_target_is_met_and_not_by_much(change: dict[str, Any]) -> None:
    args = {**GOOD, **change}
    z = calibrate_noise_multiplier(**args)
    assert round(z, 4) == z
    assert spent(z, args) <= args["epsilon"]
    one_less = spent(round(z - 1e-4, 4), args)
    assert spent(z, args) >= 0.999 * args["epsilon"] or one_less > args["epsilon"]


def test_noise_agrees_with_the_analytic_gaussian() -> None:
    """Balle and Wang 2018, Theorem 8, solved for the noise: equal to 0.1 %."""

    def excess(z: float) -> float:
        mu = 1 / z
        tail = math.exp(2.0) * float(stats.norm.cdf(-2.0 / mu - mu / 2))
        return float(stats.norm.cdf(mu / 2 - 2.0 / mu)) - tail - 1e-5

    exact = float(optimize.brentq(excess, 0.1, 100))
    z = calibrate_noise_multiplier(**{**GOOD, "sampling_probability": 1.0, "count": 1})
    assert exact <= z <= 1.001 * exact + 1e-4


@pytest.mark.slow
def test_calibration_and_its_inverse_agree() -> None:
    z = calibrate_noise_multiplier(**GOOD)
    terms = {k: v for k, v in GOOD.items() if k != "count"}
    assert calibrate_count(**terms, noise_multiplier=z) == 10
    assert calibrate_count(**terms, noise_multiplier=round(z - 0.02, 4)) < 10


def test_the_count_is_the_largest_that_fits() -> None:
    terms: dict[str, Any] = {k: v for k, v in GOOD.items() if k != "count"}
    n = calibrate_count(**terms, noise_multiplier=1.5)
    assert spent(1.5, {**GOOD, "count": n}) <= 2.0 < spent(1.5, {**GOOD, "count": n + 1})


@pytest.mark.slow
def test_counts_at_the_ends() -> None:
    terms: dict[str, Any] = {k: v for k, v in GOOD.items() if k != "count"}
    assert calibrate_count(**{**terms, "sampling_probability": 1.0}, noise_multiplier=0.1) == 0
    assert calibrate_count(**{**terms, "epsilon": 1e6}, noise_multiplier=5000.0) == 1_000_000


@pytest.mark.slow
@pytest.mark.traced
def test_a_generous_target_still_gets_the_smallest_noise() -> None:
    loose = {**GOOD, "epsilon": 1e7, "count": 1, "sampling_probability": 1.0}
    assert calibrate_noise_multiplier(**loose) == 0.01


def test_a_target_out_of_reach_is_an_error_with_advice() -> None:
    with pytest.raises(CalibrationError, match="not reached") as caught:
        calibrate_noise_multiplier(**{**GOOD, "epsilon": 0.01, "delta": 1e-18})
    assert "delta" in caught.value.hint


@pytest.mark.parametrize("name", ["epsilon", "delta", "sampling_probability", "count"])
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, True, "1", None])
def test_bad_numbers_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(InvalidValue):
        calibrate_noise_multiplier(**{**GOOD, name: bad})


@pytest.mark.parametrize("name", ["epsilon", "delta", "sampling_probability", "noise_multiplier"])
@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, True, "1", None])
def test_bad_numbers_are_refused_by_the_inverse(name: str, bad: Any) -> None:
    terms = {**{k: v for k, v in GOOD.items() if k != "count"}, "noise_multiplier": 1.0}
    with pytest.raises(InvalidValue):
        calibrate_count(**{**terms, name: bad})


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(InvalidValue, match="neighboring_relation"):
        calibrate_noise_multiplier(**{**GOOD, "relation": "zero-out"})


def both(z: float) -> ComposedEvent:
    """Skellam releases with noise z beside Gaussian ones with noise 5 z."""
    return ComposedEvent(
        events=(
            SkellamEvent(noise_multiplier=z, grid=1024, sampling_probability=0.1, count=10),
            GaussianEvent(noise_multiplier=5 * z, count=3),
        )
    )


def test_any_event_can_be_calibrated() -> None:
    terms: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-5, "relation": ADD}
    z = calibrate(both, **terms)
    assert round(z, 4) == z
    asked: dict[str, Any] = {"delta": 1e-5, "relation": ADD}
    assert epsilon_of(both(z), **asked) <= 2.0
    tight = epsilon_of(both(z), **asked) >= 0.999 * 2.0
    assert tight or epsilon_of(both(round(z - 1e-4, 4)), **asked) > 2.0


def test_an_accountant_can_be_chosen() -> None:
    def event_of(z: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier=z, sampling_probability=0.1, count=10)

    terms: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-5, "relation": ADD}
    plain = calibrate_noise_multiplier(**GOOD)
    assert calibrate(event_of, **terms) == calibrate(event_of, accountant="pld", **terms) == plain
    renyi = calibrate(event_of, accountant="rdp", **terms)
    spent_by_renyi = epsilon_of(event_of(renyi), delta=1e-5, relation=ADD, accountant="rdp")
    assert 0.998 * 2.0 <= spent_by_renyi <= 2.0
    assert renyi > plain


def test_skellam_releases_are_counted() -> None:
    def event_of(count: int) -> SkellamEvent:
        return SkellamEvent(noise_multiplier=2.0, grid=64, sampling_probability=0.1, count=count)

    terms: dict[str, Any] = {"delta": 1e-5, "relation": ADD}
    n = largest_count(event_of, epsilon=2.0, **terms)
    assert epsilon_of(event_of(n), **terms) <= 2.0 < epsilon_of(event_of(n + 1), **terms)


def halving(event_of: Callable[[float], PrivacyEvent], epsilon: float, **asked: Any) -> float:
    """Calibrate as documented, by halving alone."""

    def least(interval: float) -> int:
        low, high = 100, 10**8
        while low < high:
            middle = (low + high) // 2
            meets = epsilon_of(event_of(middle / 1e4), interval=interval, **asked) <= epsilon
            low, high = (low, middle) if meets else (middle + 1, high)
        return low

    coarse = least(ONLINE)
    spent = epsilon_of(event_of(coarse / 1e4), interval=REPORT, **asked)
    return (coarse if 0.999 * epsilon <= spent <= epsilon else least(REPORT)) / 1e4


def skellam(z: float) -> SkellamEvent:
    return SkellamEvent(noise_multiplier=z, grid=2**18, sampling_probability=0.1, count=30)


def coarse_skellam(z: float) -> SkellamEvent:
    return SkellamEvent(noise_multiplier=z, grid=64, sampling_probability=0.1, count=30)


def gaussian(q: float, n: int) -> Callable[[float], GaussianEvent]:
    return lambda z: GaussianEvent(noise_multiplier=z, sampling_probability=q, count=n)


@pytest.mark.slow
@pytest.mark.parametrize("relation", [ADD, REPLACE])
@pytest.mark.parametrize(
    ("event_of", "epsilon", "delta"),
    [
        (gaussian(0.1, 30), 8.0, 5e-4),
        (gaussian(0.2, 40), 3.2, 5e-4),
        (gaussian(0.01, 1000), 0.3, 1e-5),
        (gaussian(1.0, 1), 1.0, 1e-6),
        (gaussian(1.0, 5), 60.0, 1e-5),
        (gaussian(0.1, 3), 0.05, 1e-8),
        (skellam, 8.0, 5e-4),
        (coarse_skellam, 2.0, 1e-5),
        (both, 2.0, 1e-5),
    ],
)
def test_the_noise_is_that_of_plain_halving_after_few_evaluations(
    event_of: Callable[[float], PrivacyEvent],
    epsilon: float,
    delta: float,
    relation: NeighboringRelation,
) -> None:
    asked: list[float] = []

    def counted(z: float) -> PrivacyEvent:
        asked.append(z)
        return event_of(z)

    terms: Any = {"delta": delta, "relation": relation}
    found = calibrate(counted, epsilon=epsilon, **terms)
    assert len(asked) <= 20
    assert found == halving(event_of, epsilon, **terms)


@settings(max_examples=300, deadline=None)
@given(
    edge=st.integers(1, 10**8),
    low=st.integers(1, 10**6),
    start=st.integers(1, 10**8),
    slope=st.sampled_from([-1.0, 0.5]),
    shape=st.sampled_from(["power", "step", "flat", "wrong"]),
)
def test_a_search_ends_at_the_edge_whatever_the_measure(
    edge: int, low: int, start: int, slope: float, shape: str
) -> None:
    """Also where the measure is infinite, constant, or of the wrong sign."""
    high = 10**8
    steps = 0

    def probe(at: int) -> tuple[bool, float]:
        nonlocal steps
        steps += 1
        assert low <= at < high
        measure = {
            "power": math.log(at / edge) * slope * 3.0,
            "step": math.inf if at < edge else -math.inf,
            "flat": 0.125,
            "wrong": math.log(at / edge) * -slope,
        }[shape]
        return at >= edge, measure

    assert _first(probe, low, high, start=start, slope=slope) == min(max(edge, low), high)
    assert steps <= 8 + 2 * 28


def theirs(plan: PrivacyPlan) -> float:
    """Epsilon of a plan's Gaussian releases, or of their twin's, by dp-accounting alone."""
    assert plan.noise_multiplier is not None
    assert plan.delta is not None
    assert plan.neighboring_relation is not None
    count = plan.releases_after(plan.rounds)
    one = pld.from_gaussian_mechanism(
        plan.noise_multiplier,
        sampling_prob=plan.sampling_probability,
        value_discretization_interval=REPORT,
        neighboring_relation=THEIRS[plan.neighboring_relation],
    )
    whole = one if count == 1 else one.self_compose(count)
    return float(whole.get_epsilon_for_delta(plan.delta))


CLIENTS: dict[str, Any] = {
    "mode": "client-central",
    "unit": "client",
    "delta": 1e-5,
    "epsilon": 2.0,
    "clipping_norm": 0.5,
    "sampling_probability": 0.1,
    "rounds": 20,
    "population": 1000,
}
DISTRIBUTED: dict[str, Any] = {
    "mode": "client-distributed",
    "honest_fraction": 0.9,
    "survivor_fraction": 0.8,
    "min_cohort": 20,
}
CORRELATED: dict[str, Any] = {
    "mechanism": "correlated",
    "min_separation": 5,
    "sampling_probability": None,
}
QUANTILE: dict[str, Any] = {
    "quantile": QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=5.0, initial=0.5)
}
STEPS: dict[str, Any] = {
    "mode": "example",
    "unit": "example",
    "max_grad_norm": 1.0,
    "clipping_norm": None,
    "releases_per_round": 2,
    "max_participations": 10,
}


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["add-or-remove-one", "replace-one"])
@pytest.mark.parametrize("change", [{}, DISTRIBUTED, CORRELATED, QUANTILE, STEPS])
def test_a_plan_is_within_its_target_by_dp_accounting_itself(
    change: dict[str, Any], relation: str
) -> None:
    """And not by much: 0.1 % of epsilon, or a step of 0.0001 of noise."""
    plan = make_plan(**{**CLIENTS, "neighboring_relation": relation, **change})
    spent = theirs(plan)
    assert 0.998 * 2.0 <= spent <= 2.0 * (1 + 1e-8)
    assert plan.epsilon() == pytest.approx(spent, abs=1e-3 if plan.distributed else 1e-7)
    assert plan.epsilon() <= 2.0
    if plan.quantile is not None:
        assert plan.noise_multiplier is not None
        update = plan.quantile.split(plan.noise_multiplier)
        halves = update**-2 + (2 * plan.quantile.count_noise_stddev) ** -2
        assert halves == pytest.approx(plan.noise_multiplier**-2, rel=1e-12)


@pytest.mark.slow
def test_both_guarantees_are_within_their_targets_by_dp_accounting_itself() -> None:
    terms: Any = {"neighboring_relation": "add-or-remove-one"}
    inner = make_plan(**{**CLIENTS, **STEPS, **terms, "epsilon": 4.0})
    outer = make_plan(**{**CLIENTS, **terms, "example": inner})
    assert outer.example is inner
    assert 0.998 * 4.0 <= theirs(inner) <= 4.0 * (1 + 1e-8)
    assert 0.998 * 2.0 <= theirs(outer) <= 2.0 * (1 + 1e-8)
