"""Plans beyond one Gaussian release a round, held against formulas that are not theirs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from shared.canonical import canonical_json, sha256_hex
from shared.errors import ConflictingSettings, InvalidValue, PrivacyBudgetExhausted, SchemaMismatch
from shared.privacy.accountant import epsilon_of
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.events import (
    GaussianEvent,
    NeighboringRelation,
    NonPrivateEvent,
    NoOpEvent,
    SkellamEvent,
)
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
CLIENT: dict[str, Any] = {
    "unit": "client",
    "neighboring_relation": "add-or-remove-one",
    "delta": 1e-4,
    "noise_multiplier": 1.2,
    "clipping_norm": 0.5,
    "rounds": 20,
    "population": 1000,
}
TERMS: dict[str, Any] = {"honest_fraction": 0.9, "survivor_fraction": 0.8, "min_cohort": 20}
STEPS = make_plan(
    mode="example",
    unit="example",
    neighboring_relation="add-or-remove-one",
    delta=1e-5,
    noise_multiplier=1.5,
    max_grad_norm=0.5,
    sampling_probability=0.05,
    releases_per_round=4,
    rounds=20,
    population=1000,
)
QUANTILE = QuantileClipping(
    target=0.5, learning_rate=0.2, count_noise_stddev=5.0, initial=CLIENT["clipping_norm"]
)


def central(**changes: Any) -> PrivacyPlan:
    return make_plan(mode="client-central", **{"sampling_probability": 0.1, **CLIENT, **changes})


def distributed(**changes: Any) -> PrivacyPlan:
    values = {"sampling_probability": 0.1, **CLIENT, **TERMS, **changes}
    return make_plan(mode="client-distributed", **values)


def correlated(**changes: Any) -> PrivacyPlan:
    values = {"mechanism": "correlated", "min_separation": 10, **CLIENT, **changes}
    return make_plan(mode="client-central", **values)


def gaussian_pld(z: float, q: float, count: int) -> float:
    """Epsilon of as many Gaussian releases, by the library."""
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z))
    accountant.compose(event, count)
    return float(accountant.get_epsilon(CLIENT["delta"]))


def test_distributed_noise_costs_what_gaussian_noise_costs_on_a_fine_grid() -> None:
    plan = distributed()
    assert plan.noise == "skellam"
    assert plan.accountant == "pld"
    assert plan.event_for_round(7) == SkellamEvent(
        noise_multiplier=1.2, grid=2**18, sampling_probability=0.1
    )
    assert plan.total_events() == SkellamEvent(
        noise_multiplier=1.2, grid=2**18, sampling_probability=0.1, count=20
    )
    assert plan.epsilon() == pytest.approx(gaussian_pld(1.2, 0.1, 20), rel=1e-3)
    assert plan.epsilon() > central().epsilon()
    assert plan.epsilon() < plan.epsilon(accountant="rdp")


def test_on_a_coarse_grid_every_figure_is_by_renyi() -> None:
    """A cohort of a million leaves 2**11 steps to a clip; as rounds pass nothing changes."""
    plan = distributed(sampling_probability=1.0, population=1_000_000)
    assert plan.distributed is not None
    assert plan.distributed.grid == 2**11
    assert plan.accountant == "rdp"
    assert plan.epsilon() == plan.epsilon(accountant="rdp")
    spent = [plan.epsilon_after(n) for n in (1, 2, 19, 20)]
    assert spent == [
        epsilon_of(plan.events_after(n), delta=1e-4, relation=ADD, accountant="rdp")
        for n in (1, 2, 19, 20)
    ]


def test_a_plan_keeps_its_accountant_from_the_first_round_to_the_last() -> None:
    """Twenty thousand rounds are too many for PLD on this grid, one would not be."""
    terms: dict[str, Any] = {"sampling_probability": 0.3, "population": 600_000}
    short, long = distributed(**terms, rounds=1), distributed(**terms, rounds=20_000)
    assert (short.accountant, long.accountant) == ("pld", "rdp")
    first = long.epsilon_after(1)
    by_renyi = epsilon_of(long.events_after(1), delta=1e-4, relation=ADD, accountant="rdp")
    assert first == by_renyi > short.epsilon()
    assert long.epsilon_after(20_001) > long.epsilon()


def test_the_server_is_held_off_by_the_noise_it_does_not_know() -> None:
    plan = distributed()
    assert plan.observer_epsilon() == pytest.approx(gaussian_pld(1.2, 1.0, 20), rel=1e-3)
    hidden = 1.2 * math.sqrt(0.8 + 0.9 - 1.0)
    assert plan.server_epsilon() == pytest.approx(gaussian_pld(hidden, 1.0, 20), rel=1e-3)
    assert plan.epsilon() < plan.observer_epsilon() < plan.server_epsilon() < math.inf
    trusting = distributed(honest_fraction=1.0, survivor_fraction=1.0)
    assert trusting.server_epsilon() == pytest.approx(trusting.observer_epsilon(), rel=1e-9)
    assert math.isinf(central().server_epsilon())


def test_distributed_noise_is_calibrated_from_below() -> None:
    plan = distributed(noise_multiplier=None, epsilon=3.0)
    assert 2.99 < plan.epsilon() <= 3.0
    assert plan.cap == 3.0
    with pytest.raises(PrivacyBudgetExhausted):
        distributed(cap=0.5)


def test_noise_may_be_calibrated_against_the_server() -> None:
    """Colluders and dropouts are in that figure, so they are in the noise."""
    open_to_server = distributed(noise_multiplier=None, epsilon=3.0)
    assert open_to_server.server_epsilon() > 20.0
    plan = distributed(noise_multiplier=None, epsilon=3.0, server_epsilon=20.0)
    assert 19.9 < plan.server_epsilon() <= 20.0
    assert plan.epsilon() < open_to_server.epsilon()
    assert plan.cap == 3.0
    loose = distributed(noise_multiplier=None, epsilon=3.0, server_epsilon=10_000.0)
    assert loose == open_to_server
    suspicious = distributed(
        noise_multiplier=None, epsilon=3.0, server_epsilon=20.0, honest_fraction=0.7
    )
    assert (suspicious.noise_multiplier or 0.0) > (plan.noise_multiplier or 0.0)


def test_given_noise_is_held_against_the_server() -> None:
    assert distributed(server_epsilon=1000.0) == distributed()
    with pytest.raises(PrivacyBudgetExhausted, match="at the server"):
        distributed(server_epsilon=0.5)
    with pytest.raises(ConflictingSettings, match="client-distributed"):
        central(server_epsilon=5.0)


def test_the_grid_is_the_finest_on_which_a_cohort_does_not_wrap() -> None:
    plan = distributed(sampling_probability=1.0, population=60_000)
    assert plan.distributed is not None
    grid = plan.distributed.grid
    assert 60_000 * grid + 10 * 1.2 * grid < 2**31
    assert 60_000 * 2 * grid >= 2**31
    assert grid & (grid - 1) == 0


@pytest.mark.slow
@pytest.mark.traced
def test_more_noise_may_need_a_coarser_grid() -> None:
    calm = distributed(noise_multiplier=None, epsilon=0.05, rounds=2000, sampling_probability=1.0)
    assert calm.distributed is not None
    assert calm.noise_multiplier is not None
    room = calm.population + 10 * calm.noise_multiplier
    assert calm.distributed.grid * room < 2**31
    assert calm.distributed.grid < 2**18
    assert 0.049 < calm.epsilon() <= 0.05


def test_correlated_noise_is_one_release_for_the_run() -> None:
    plan = correlated()
    assert plan.correlated == CorrelatedTerms(bands=10, min_separation=10, rounds=20)
    whole = GaussianEvent(noise_multiplier=1.2)
    assert plan.total_events() == plan.event_for_round(1) == plan.event_for_participation() == whole
    assert plan.event_for_round(2) == NoOpEvent()
    assert plan.releases_after(1) == plan.releases_after(20) == 1
    assert plan.epsilon_after(3) == pytest.approx(plan.epsilon(), rel=1e-3)
    assert plan.epsilon() == plan.observer_epsilon()
    assert math.isinf(plan.server_epsilon())
    assert plan.participations == 2
    assert plan.expected_cohort == 100.0
    assert correlated(bands=3).correlated == CorrelatedTerms(bands=3, min_separation=10, rounds=20)
    assert correlated(min_separation=50).participations == 1


def test_correlated_noise_is_calibrated_for_the_whole_run() -> None:
    plan = correlated(noise_multiplier=None, epsilon=2.0)
    assert 1.99 < plan.epsilon() <= 2.0


def test_a_moving_clip_shares_one_noise_multiplier() -> None:
    plan = central(quantile=QUANTILE)
    assert plan.total_events() == central().total_events()
    with pytest.raises(ConflictingSettings):
        central(quantile=dataclasses.replace(QUANTILE, count_noise_stddev=0.5))


@pytest.mark.parametrize("make", [central, distributed, correlated])
def test_dp_sgd_inside_each_client_keeps_its_own_figure(make: Any) -> None:
    alone, both = make(), make(example=STEPS)
    assert both.example == STEPS
    assert both.epsilon() == alone.epsilon()
    assert both.digest() != alone.digest()


PLANS = {
    "central": central(),
    "distributed": distributed(),
    "correlated": correlated(),
    "quantile": central(quantile=QUANTILE),
    "both": distributed(example=STEPS),
    "none": make_plan(mode="none", rounds=3, population=5),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_plans_are_stored_and_read(plan: PrivacyPlan) -> None:
    text = canonical_json(plan.to_json())
    assert PrivacyPlan.from_json(text) == plan
    assert PrivacyPlan.from_json(plan.to_json()) == plan
    assert plan.digest() == sha256_hex(text)


@pytest.mark.parametrize("name", ["central", "none"])
def test_a_plan_that_version_1_could_express_keeps_its_form_and_digest(name: str) -> None:
    stored = PLANS[name].to_json()
    assert stored["schema"] == 1
    assert not {"noise", "example", "quantile", "correlated", "distributed"} & set(stored)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"schema": 2.0},
        {"extra": 1},
        {"distributed": {"grid": 1}},
        {"quantile": {"target": 0.5}},
        {"correlated": {"bands": 1}},
        {"example": {}},
        {"example": 3},
    ],
)
def test_a_stored_plan_that_is_not_understood_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaMismatch):
        PrivacyPlan.from_json({**PLANS["distributed"].to_json(), **change})


def test_the_twin_without_privacy_drops_every_mechanism() -> None:
    twin = make_plan(
        mode="none",
        example=STEPS,
        quantile=QUANTILE,
        **{**CLIENT, **TERMS, "sampling_probability": 0.1},
    )
    assert twin == make_plan(mode="none", rounds=20, population=1000)
    assert twin.total_events() == NonPrivateEvent()
    assert math.isinf(twin.server_epsilon())


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "client-distributed"},
        {"noise": "skellam"},
        {"noise": "correlated"},
        {"distributed": PLANS["distributed"].distributed},
        {"correlated": PLANS["correlated"].correlated},
        {"quantile": dataclasses.replace(QUANTILE, initial=0.25)},
        {"example": dataclasses.replace(STEPS, rounds=21)},
        {"example": dataclasses.replace(STEPS, population=999)},
        {"example": dataclasses.replace(STEPS, noise_source="seeded-simulation")},
        {"example": central()},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConflictingSettings):
        dataclasses.replace(central(), **change)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("distributed", {"population": 19}),
        ("distributed", {"quantile": QUANTILE}),
        ("correlated", {"rounds": 21}),
        ("correlated", {"sampling_probability": 0.5}),
        ("correlated", {"quantile": QUANTILE}),
        ("none", {"example": STEPS}),
    ],
)
def test_terms_that_contradict_the_plan_are_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(ConflictingSettings):
        dataclasses.replace(PLANS[name], **change)


@pytest.mark.parametrize("name", [*TERMS, "clipping_norm", "sampling_probability"])
def test_distributed_noise_has_no_defaults(name: str) -> None:
    with pytest.raises(InvalidValue, match=name):
        distributed(**{name: None})


def test_a_cohort_that_could_never_be_summed_is_no_plan() -> None:
    """At these fractions rounding leaves ten clients without a safe threshold."""
    with pytest.raises(ConflictingSettings):
        distributed(min_cohort=10, honest_fraction=0.67, survivor_fraction=0.7)


def test_correlated_noise_says_how_far_participations_are_apart() -> None:
    with pytest.raises(InvalidValue, match="min_separation"):
        correlated(min_separation=None)


def test_correlated_noise_is_added_by_the_server() -> None:
    with pytest.raises(ConflictingSettings, match="by the server"):
        distributed(mechanism="correlated")
    with pytest.raises(InvalidValue, match="mechanism"):
        central(mechanism="laplace")


def test_shares_and_sum_follow_the_plan() -> None:
    mechanism = distributed().distributed_mechanism
    assert mechanism.event == distributed().event_for_participation()
    assert mechanism.clipping_norm == CLIENT["clipping_norm"]
    with pytest.raises(ConflictingSettings, match="no shares"):
        _ = central().distributed_mechanism


def test_other_noise_is_not_the_gaussian_mechanism() -> None:
    for plan in (distributed(), correlated()):
        with pytest.raises(ConflictingSettings, match="no Gaussian noise"):
            _ = plan.mechanism
