from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import optimize, stats

from shared.errors import CalibrationError, InvalidValue
from shared.privacy.accountant import epsilon_of
from shared.privacy.calibration import (
    calibrate,
    calibrate_count,
    calibrate_noise_multiplier,
    largest_count,
)
from shared.privacy.events import ComposedEvent, GaussianEvent, NeighboringRelation, SkellamEvent

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
