"""Directions and scores, against matrices written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from server.audit.directions import (
    ClientCanaries,
    cyclic_schedule,
    decoded,
    lean,
    sampled_schedule,
    schedule_of,
    update_noise,
)
from server.cohort import cyclic_cohort
from shared.errors import AuditError, InvalidValue
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from tests.server.audit.canaryruns import plan_of_run, released_run


def correlated(*, rounds: int = 12, separation: int = 4, population: int = 41) -> PrivacyPlan:
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=1.5,
        clipping_norm=2.0,
        rounds=rounds,
        population=population,
        mechanism="correlated",
        bands=3,
        min_separation=separation,
    )


def test_directions_are_unit_reproducible_and_unrelated() -> None:
    """Correlation of 4,000 pairs; false alarm 0.01 %."""
    canaries = ClientCanaries(count=2, seed=9)
    one, two, unseen = canaries.direction(0, 4000), canaries.direction(1, 4000), None
    unseen = canaries.unseen(0, 4000)
    assert np.linalg.norm(one) == pytest.approx(1.0)
    np.testing.assert_array_equal(one, ClientCanaries(count=5, seed=9).direction(0, 4000))
    for other in (two, unseen, ClientCanaries(count=1, seed=10).direction(0, 4000)):
        assert abs(one @ other) * math.sqrt(4000) < 3.9


def test_directions_are_uniform_on_the_sphere() -> None:
    """Kolmogorov-Smirnov against the exact law of a coordinate; false alarm 0.1 %."""
    canaries = ClientCanaries(count=1, seed=3)
    firsts = [canaries.direction(index, 7)[0] for index in range(800)]
    law = stats.beta(3, 3, loc=-1, scale=2)
    assert stats.kstest(firsts, law.cdf).pvalue > 1e-3


def test_decoding_is_the_dense_product() -> None:
    rng = np.random.default_rng(0)
    rounds = rng.standard_normal((6, 5))
    column = np.array([1.0, 0.5, 0.375])
    dense = sum(column[k] * np.eye(6, k=-k) for k in range(3))
    np.testing.assert_allclose(decoded(rounds, column), dense @ rounds)
    np.testing.assert_array_equal(decoded(rounds, np.ones(1)), rounds)


def test_scores_and_cosines_by_hand() -> None:
    rng = np.random.default_rng(1)
    values, clips = rng.standard_normal((5, 30)), np.array([1.0, 2.0, 1.0, 0.5, 1.0])
    schedule = sampled_schedule(rounds=5, canaries=3, probability=0.5, noise_multiplier=1.0)
    planted = ClientCanaries(count=3, seed=0)
    found = lean(
        values,
        clips=clips,
        schedule=schedule,
        directions=lambda index: planted.direction(index, 30),
        dimension=30,
    )
    scaled = values / clips[:, None]
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    total, heading = scaled.sum(axis=0), unit.sum(axis=0)
    for index in range(3):
        direction = planted.direction(index, 30)
        assert found.cosines[index] == pytest.approx(
            float(direction @ total / np.linalg.norm(total))
        )
        assert found.scores[index] == pytest.approx(
            float(math.sqrt(30 / 5) * (direction @ heading))
        )
    assert found.spread == pytest.approx(float(heading @ heading) / 5)
    np.testing.assert_allclose(found.lengths, np.linalg.norm(scaled, axis=1) / math.sqrt(30))


def test_releases_of_zeros_lean_nowhere() -> None:
    schedule = sampled_schedule(rounds=2, canaries=1, probability=1.0, noise_multiplier=1.0)
    found = lean(
        np.zeros((2, 10)),
        clips=np.ones(2),
        schedule=schedule,
        directions=lambda _: np.full(10, 10**-0.5),
        dimension=10,
    )
    assert found.scores[0] == found.cosines[0] == found.spread == 0.0


def test_kept_coordinates_give_the_same_mean_score() -> None:
    """Four seeds, 100 canaries each: means within five standard errors of the prediction."""
    plan = plan_of_run(rounds=50)
    means = []
    for seed in range(4):
        record, planted = released_run(plan, seed=seed, kept=1000)
        assert record.releases is not None
        schedule = schedule_of(
            plan, planted, population=plan.population, rounds=record.releases.rounds
        )
        found = lean(
            record.releases.values,
            clips=np.full(50, 0.7),
            schedule=schedule,
            directions=lambda index, planted=planted: planted.direction(index, 4000),  # type: ignore[misc]
            dimension=4000,
            coordinates=record.releases.coordinates,
        )
        assert found.share == 0.25
        means.append(found.scores.mean())
    error = math.sqrt((4 * 1.05 + 0.09) / 400)
    assert np.mean(means) == pytest.approx(schedule.predicted(4000) or 0.0, abs=5 * error)


def test_the_prediction_is_that_of_the_notes_where_canaries_are_few() -> None:
    """q sqrt(T) / z, and a variance of coins of q (1 - q) / z squared."""
    schedule = sampled_schedule(rounds=60, canaries=1, probability=0.5, noise_multiplier=2.0)
    assert schedule.predicted(10**9) == pytest.approx(0.5 * math.sqrt(60) / 2, rel=1e-6)
    assert schedule.sampling_variance == pytest.approx(0.25 / 4)
    unplanned = sampled_schedule(rounds=60, canaries=1, probability=0.5, noise_multiplier=None)
    assert unplanned.predicted(10) is None
    assert unplanned.sampling_variance == 0.0


def test_cyclic_canaries_come_near_the_epsilon_of_the_whole_run() -> None:
    """A client that takes part as often as it may is one Gaussian release: mu = 1 / z."""
    plan = correlated(rounds=12)
    planted = ClientCanaries(count=5, seed=7)
    schedule = schedule_of(plan, planted, population=41, rounds=tuple(range(1, 13)))
    predicted = schedule.predicted(10**9)
    assert predicted is not None
    assert 0.93 / 1.5 < predicted <= 1 / 1.5 + 1e-9
    assert schedule.sampling_variance == 0.0
    for number in range(1, 13):
        cohort = set(cyclic_cohort(41, 4, number, 7))
        for canary in range(5):
            rows = schedule.signal[schedule.group[canary]]
            raw = np.linalg.solve(
                sum(c * np.eye(12, k=-k) for k, c in enumerate(schedule.coefficients)), rows
            )
            assert raw[number - 1] == pytest.approx(float(36 + canary in cohort), abs=1e-12)


def test_correlated_rounds_must_all_be_there() -> None:
    plan, planted = correlated(), ClientCanaries(count=5, seed=7)
    with pytest.raises(AuditError, match="expected all of them"):
        schedule_of(plan, planted, population=41, rounds=(1, 3))
    with pytest.raises(AuditError, match="never takes part"):
        schedule_of(plan, planted, population=41, rounds=(1,))
    with pytest.raises(AuditError, match="correlated"):
        cyclic_schedule(plan_of_run(), np.ones((1, 3), dtype=np.bool_))


def test_the_noise_of_the_update_alone() -> None:
    plain = plan_of_run(noise=1.5)
    assert update_noise(plain) == 1.5
    quantile = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=1.0, initial=0.7)
    adaptive = make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-5,
        noise_multiplier=1.5,
        clipping_norm=0.7,
        sampling_probability=0.1,
        rounds=3,
        population=100,
        quantile=quantile,
    )
    assert update_noise(adaptive) == pytest.approx((1.5**-2 - 0.25) ** -0.5)
    assert update_noise(make_plan(mode="none", rounds=1, population=10)) is None


@pytest.mark.parametrize("count", [0, -1, True, 1.0])
def test_a_count_of_canaries_is_a_positive_integer(count: Any) -> None:
    with pytest.raises(InvalidValue):
        ClientCanaries(count=count, seed=0)
