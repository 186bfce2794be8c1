"""Noise over rounds: the plan's epsilon against dp-accounting, and no choice of rounds above it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting import pld
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import (
    ConflictingSettings,
    InvalidValue,
    LedgerConflict,
    PrivacyBudgetExhausted,
    SchemaMismatch,
)
from shared.privacy.clauses import how
from shared.privacy.events import ComposedEvent, Composition, GaussianEvent
from shared.privacy.ledger import Ledger
from shared.privacy.noiseschedule import LEVELS, NoiseSchedule
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from tests.shared.privacy.test_plan import CENTRAL, EXAMPLE

HALF = NoiseSchedule(final=0.5)
DOUBLE = NoiseSchedule(final=2.0)


@functools.cache
def one_round(
    noise: float, probability: float
) -> pld.privacy_loss_distribution.PrivacyLossDistribution:
    """Return dp-accounting's loss of one Poisson-subsampled Gaussian; building it is what costs."""
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=probability,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def theirs(rounds: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Epsilon of Poisson-subsampled Gaussians (noise, probability, count) by dp-accounting."""
    losses = [
        one_round(noise, probability).self_compose(count) for noise, probability, count in rounds
    ]
    total = functools.reduce(lambda some, another: some.compose(another), losses)
    return float(total.get_epsilon_for_delta(delta))


def stairs(z: float, final: float, rounds: int) -> list[float]:
    """The noise multipliers as the documentation says them, round by round."""
    count = min(rounds, 8)
    heights = [z + z * (final - 1) * i / max(count - 1, 1) for i in range(count)]
    return [heights[(t - 1) * count // rounds] for t in range(1, rounds + 1)]


@pytest.mark.parametrize("final", [0.5, 2.0])
def test_a_target_epsilon_is_met_by_the_composition_of_unequal_rounds(final: float) -> None:
    """Oracle: dp-accounting on the rounds of the documentation, one by one."""
    said = {**CENTRAL, "rounds": 10, "noise_multiplier": None, "epsilon": 3.0}
    plan = make_plan(**said, schedule=NoiseSchedule(final=final))
    z = plan.noise_multiplier or 0.0
    found = theirs([(noise, 0.1, 1) for noise in stairs(z, final, 10)], 1e-4)
    assert 0.99 * 3.0 <= found <= 3.0 * 1.0001
    assert plan.epsilon() == pytest.approx(found, rel=5e-3)
    assert plan.least_noise_multiplier == pytest.approx(z * min(final, 1.0))
    for number, noise in enumerate(stairs(z, final, 10), start=1):
        assert plan.noise_multiplier_of(number) == pytest.approx(noise)
        assert plan.mechanism_of(number).noise_multiplier == plan.noise_multiplier_of(number)
        assert plan.event_for_round(number) == plan.mechanism_of(number).event


def test_every_round_charges_its_own_noise_and_together_they_are_the_plan() -> None:
    plan = make_plan(**CENTRAL, schedule=HALF)
    charged = Composition.of(*(plan.event_for_round(t) for t in range(1, plan.rounds + 1)))
    assert charged == Composition.of(plan.total_events())
    assert charged.releases == plan.rounds
    assert len(charged.pairs) == LEVELS
    early = [plan.epsilon_after(rounds) for rounds in (1, 7, 19, 20)]
    assert early == sorted(early)
    assert early[-1] == plan.epsilon()


@pytest.mark.parametrize("schedule", [HALF, DOUBLE])
def test_no_choice_of_rounds_costs_more_than_the_capped_plan(schedule: NoiseSchedule) -> None:
    """Oracle: every choice of 3 of 6 rounds, composed by dp-accounting."""
    said = {**EXAMPLE, "rounds": 6, "releases_per_round": 1}
    plan = make_plan(**said, max_participations=3, schedule=schedule)
    noises = stairs(1.2, schedule.final, 6)
    costs = [
        theirs([(noise, 0.05, 1) for noise in chosen], 1e-5) for chosen in combinations(noises, 3)
    ]
    assert plan.epsilon() == pytest.approx(max(costs), rel=5e-3)
    assert plan.epsilon_after(6) == plan.epsilon()
    assert plan.observer_epsilon() == plan.epsilon()


def test_an_observer_of_participations_gets_no_amplification() -> None:
    plan = make_plan(**{**CENTRAL, "rounds": 4}, schedule=HALF)
    found = theirs([(noise, 1.0, 1) for noise in stairs(1.2, 0.5, 4)], 1e-4)
    assert plan.observer_epsilon() == pytest.approx(found, rel=5e-3)


def test_a_plan_with_a_schedule_is_stored_and_others_keep_their_form() -> None:
    plain, unequal = make_plan(**CENTRAL), make_plan(**CENTRAL, schedule=HALF)
    assert PrivacyPlan.from_json(unequal.to_json()) == unequal
    assert plain.to_json()["schema"] == 1
    assert "schedule" not in plain.to_json()
    assert unequal.digest() not in {plain.digest(), make_plan(**CENTRAL, schedule=DOUBLE).digest()}
    stored = dict(unequal.to_json())
    stored["schedule"] = {"form": "linear", "final": 0.5, "extra": 1}
    with pytest.raises(SchemaMismatch):
        PrivacyPlan.from_json(stored)
    stored["schedule"] = {"form": "linear", "final": 0.001}
    with pytest.raises(InvalidValue):
        PrivacyPlan.from_json(stored)


@pytest.mark.parametrize(
    "changes",
    [
        {"mechanism": "correlated", "min_separation": 5},
        {
            "quantile": QuantileClipping(
                target=0.5, learning_rate=0.2, count_noise_stddev=5.0, initial=0.5
            )
        },
        {
            "mode": "client-distributed",
            "honest_fraction": 0.8,
            "survivor_fraction": 0.9,
            "min_cohort": 4,
        },
    ],
)
def test_other_mechanisms_have_no_schedule(changes: dict[str, Any]) -> None:
    with pytest.raises(ConflictingSettings, match="noise schedule"):
        make_plan(**{**CENTRAL, **changes}, schedule=HALF)


@pytest.mark.parametrize("final", [0.0, -1.0, math.nan, math.inf, 0.05, 11.0, True])
def test_ratios_out_of_range_are_refused(final: float) -> None:
    with pytest.raises(InvalidValue):
        NoiseSchedule(final=final)


@given(st.floats(0.1, 10.0), st.integers(1, 200))
def test_factors_run_from_one_to_the_final_one_in_few_stairs(final: float, rounds: int) -> None:
    schedule = NoiseSchedule(final=final)
    factors = [schedule.factor(t, rounds=rounds) for t in range(1, rounds + 1)]
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(final if rounds > 1 else 1.0)
    assert len(set(factors)) <= LEVELS
    assert factors == sorted(factors, reverse=final < 1)
    assert schedule.factor(rounds + 5, rounds=rounds) == factors[-1]
    with pytest.raises(InvalidValue):
        schedule.factor(0, rounds=rounds)


def test_the_ledger_takes_each_rounds_event_and_no_other(tmp_path: Path) -> None:
    """A cap on participations: the plan's worst rounds bound whichever rounds a client was in."""
    said = {**EXAMPLE, "rounds": 6, "releases_per_round": 1}
    plan = make_plan(**said, max_participations=2, schedule=HALF)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        digest = ledger.register_plan("run", plan, "data")

        def charge(server_round: int, event: GaussianEvent | Any) -> None:
            ledger.reserve(
                run_id="run",
                server_round=server_round,
                subjects=["client-0"],
                event=event,
                plan_digest=digest,
            )

        charge(1, plan.event_for_round(1))
        first = ledger.spent("client-0", "data").epsilon
        assert first == pytest.approx(theirs([(1.2, 0.05, 1)], 1e-5), rel=1e-2)
        strange = GaussianEvent(noise_multiplier=1.1, sampling_probability=0.05)
        with pytest.raises(LedgerConflict, match="another mechanism, noise"):
            charge(2, strange)
        charge(6, plan.event_for_round(6))
        assert first < ledger.spent("client-0", "data").epsilon <= plan.epsilon()
        with pytest.raises(PrivacyBudgetExhausted):
            charge(5, plan.event_for_round(5))


def test_another_form_is_refused() -> None:
    with pytest.raises(InvalidValue, match="expected 'linear'"):
        NoiseSchedule(form="cosine", final=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [CENTRAL, EXAMPLE], ids=["client-central", "example"])
def test_the_statement_says_how_noise_goes(said: dict[str, Any]) -> None:
    plan = make_plan(**{**said, "rounds": 10, "noise_multiplier": 2.0}, schedule=HALF)
    text = " ".join(str(clause) for clause in how(plan))
    assert "2 (first rounds) to 1 (last rounds" in text


def test_the_dearest_rounds_are_those_of_least_noise() -> None:
    plan = make_plan(**{**CENTRAL, "rounds": 10, "noise_multiplier": 2.0}, schedule=HALF)
    found = plan.dearest_events(3)
    noises = sorted(stairs(2.0, 0.5, 10))[:3]
    parts = found.events if isinstance(found, ComposedEvent) else (found,)
    said = [(e.noise_multiplier, e.count) for e in parts if isinstance(e, GaussianEvent)]
    assert sorted(n for n, count in said for _ in range(count)) == pytest.approx(noises)
    assert found != plan.events_after(3)
