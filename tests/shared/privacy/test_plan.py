from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.canonical import canonical_json
from shared.errors import (
    ConflictingSettings,
    InvalidValue,
    PrivacyBudgetExhausted,
    SchemaMismatch,
)
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation, NonPrivateEvent
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planform import unit_of
from shared.privacy.planning import make_plan

CENTRAL: dict[str, Any] = {
    "mode": "client-central",
    "unit": "client",
    "neighboring_relation": "add-or-remove-one",
    "delta": 1e-4,
    "noise_multiplier": 1.2,
    "clipping_norm": 0.5,
    "sampling_probability": 0.1,
    "rounds": 20,
    "population": 1000,
}
EXAMPLE: dict[str, Any] = {
    "mode": "example",
    "unit": "example",
    "neighboring_relation": "add-or-remove-one",
    "delta": 1e-5,
    "noise_multiplier": 1.2,
    "max_grad_norm": 0.5,
    "sampling_probability": 0.05,
    "releases_per_round": 4,
    "rounds": 10,
    "population": 98,
}
ADD = NeighboringRelation.ADD_OR_REMOVE_ONE


def event(z: float, q: float, n: int) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=z, sampling_probability=q, count=n)


def test_client_central_charges_the_population_once_a_round() -> None:
    plan = make_plan(**CENTRAL)
    assert plan.event_for_participation() == event(1.2, 0.1, 1)
    assert plan.total_events() == event(1.2, 0.1, 20)
    assert plan.releases_after(3) == 3
    assert plan.expected_cohort == 100.0
    assert plan.mechanism.event == plan.event_for_participation()
    assert plan.mechanism.clipping_norm == 0.5
    assert plan.epsilon() == epsilon_of(event(1.2, 0.1, 20), delta=1e-4, relation=ADD)
    assert plan.cap == plan.epsilon()


def test_example_mode_charges_every_local_step_of_every_round_without_client_sampling() -> None:
    plan = make_plan(**EXAMPLE)
    assert plan.event_for_participation() == event(1.2, 0.05, 4)
    assert plan.total_events() == event(1.2, 0.05, 40)
    capped = make_plan(**EXAMPLE, max_participations=3)
    assert capped.total_events() == event(1.2, 0.05, 12)
    assert capped.epsilon_after(9) == capped.epsilon_after(3) == capped.epsilon()
    assert capped.observer_epsilon() == capped.server_epsilon() == capped.epsilon()
    with pytest.raises(ConflictingSettings, match="no Gaussian noise at the server"):
        _ = plan.mechanism


def test_two_observers_have_two_numbers() -> None:
    plan = make_plan(**CENTRAL, max_participations=5)
    unamplified = epsilon_of(event(1.2, 1.0, 5), delta=1e-4, relation=ADD)
    assert plan.observer_epsilon() == unamplified > plan.epsilon()
    assert make_plan(**CENTRAL).observer_epsilon() > unamplified
    assert plan.total_events() == event(1.2, 0.1, 20)
    assert plan.server_epsilon() == math.inf


@pytest.mark.parametrize("base", [CENTRAL, EXAMPLE], ids=["central", "example"])
def test_a_target_gives_the_noise_that_meets_it(base: dict[str, Any]) -> None:
    plan = make_plan(**{**base, "noise_multiplier": None, "epsilon": 3.0})
    assert 0.998 * 3.0 <= plan.epsilon() <= 3.0
    assert plan.cap == 3.0


def test_epsilon_grows_by_round_and_ends_at_the_plan() -> None:
    plan = make_plan(**CENTRAL)
    by_round = [plan.epsilon_after(n) for n in (0, 1, 5, 10, 20)]
    assert by_round == sorted(set(by_round))
    assert by_round[0] == 0.0
    assert by_round[-1] == plan.epsilon()
    assert plan.epsilon_after(40) > plan.epsilon()
    with pytest.raises(InvalidValue, match="rounds"):
        plan.epsilon_after(-1)


def test_mode_none_is_the_same_plan_with_one_word_changed() -> None:
    plan = make_plan(**{**CENTRAL, "mode": "none"})
    assert plan.epsilon() == plan.observer_epsilon() == plan.server_epsilon() == math.inf
    assert plan.epsilon_after(1) == math.inf
    assert plan.total_events() == plan.event_for_participation() == NonPrivateEvent()
    stored = plan.to_json()
    for name in ("unit", "neighboring_relation", "delta", "noise_multiplier", "cap"):
        assert stored[name] is None
    assert plan.warnings()[0].startswith("NO PRIVACY")


def test_a_plan_above_its_cap_is_refused_before_anything_runs() -> None:
    with pytest.raises(PrivacyBudgetExhausted, match="cap=") as caught:
        make_plan(**CENTRAL, cap=1.0)
    assert caught.value.cap == 1.0
    assert caught.value.requested > 1.0
    assert make_plan(**CENTRAL, cap=50.0).cap == 50.0


def test_noise_too_small_for_a_finite_epsilon_needs_a_decision() -> None:
    with pytest.raises(InvalidValue, match="no finite epsilon"):
        make_plan(**{**CENTRAL, "delta": 1e-60})


@pytest.mark.parametrize("name", ["unit", "neighboring_relation", "delta", "clipping_norm"])
def test_what_makes_the_guarantee_has_no_default(name: str) -> None:
    with pytest.raises(InvalidValue, match="no default"):
        make_plan(**{**CENTRAL, name: None})


def test_every_mode_needs_its_own_clip() -> None:
    with pytest.raises(InvalidValue, match="max_grad_norm"):
        make_plan(**{**EXAMPLE, "max_grad_norm": None, "clipping_norm": 1.0})
    assert make_plan(**EXAMPLE, clipping_norm=1.0).clipping_norm is None


def test_exactly_one_of_epsilon_and_noise() -> None:
    for both in ({"epsilon": 3.0}, {"noise_multiplier": None}):
        with pytest.raises(ConflictingSettings, match="expected one"):
            make_plan(**{**CENTRAL, **both})


def test_the_unit_is_the_one_that_the_mode_protects() -> None:
    with pytest.raises(ConflictingSettings, match="protects"):
        make_plan(**{**CENTRAL, "unit": "example"})
    with pytest.raises(InvalidValue, match="privacy_unit"):
        unit_of("person")


@pytest.mark.parametrize(
    ("name", "value"),
    [("mode", "client_central"), ("noise_source", "numpy"), ("neighboring_relation", "swap")],
)
def test_unknown_words_are_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidValue, match=name):
        make_plan(**{**CENTRAL, name: value})


@pytest.mark.parametrize(
    "name",
    ["noise_multiplier", "clipping_norm", "sampling_probability", "delta", "cap"],
)
@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, True, "1"])
def test_bad_numbers_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(InvalidValue):
        make_plan(**{**CENTRAL, name: bad})


@pytest.mark.parametrize(
    "name", ["rounds", "population", "releases_per_round", "max_participations", "dataset_size"]
)
@pytest.mark.parametrize("bad", [0, -1, 1.5, math.nan, True, "1"])
def test_bad_counts_are_refused(name: str, bad: Any) -> None:
    for start in ({}, {"noise_multiplier": None, "epsilon": 3.0}):
        with pytest.raises(InvalidValue):
            make_plan(**{**EXAMPLE, **start, name: bad})


@pytest.mark.parametrize(
    "change",
    [
        {"delta": None},
        {"cap": None},
        {"max_grad_norm": 1.0},
        {"clipping_norm": None},
        {"mode": "none"},
        {"mode": "example"},
        {"unit": "example"},
        {"releases_per_round": 2},
        {"delta": 2.0},
    ],
)
def test_a_plan_that_contradicts_its_mode_cannot_be_built(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        dataclasses.replace(make_plan(**CENTRAL), **change)


@given(
    st.floats(0.5, 5.0),
    st.floats(0.001, 1.0),
    st.integers(1, 50),
    st.sampled_from(["add-or-remove-one", "replace-one"]),
)
def test_plans_survive_storage(z: float, q: float, rounds: int, relation: str) -> None:
    plan = dataclasses.replace(
        make_plan(**{**CENTRAL, "mode": "none"}),
        mode="client-central",
        unit=unit_of("client"),
        neighboring_relation=NeighboringRelation(relation),
        delta=1e-5,
        noise_multiplier=z,
        clipping_norm=1.0,
        cap=9.0,
        sampling_probability=q,
        rounds=rounds,
    )
    assert PrivacyPlan.from_json(plan.to_json()) == plan
    read = PrivacyPlan.from_json(canonical_json(plan.to_json()))
    assert read == plan
    assert read.digest() == plan.digest()


def test_the_digest_changes_with_every_field() -> None:
    plan = make_plan(**CENTRAL)
    changes: dict[str, Any] = {
        "delta": 1e-6,
        "noise_multiplier": 1.3,
        "clipping_norm": 0.6,
        "sampling_probability": 0.2,
        "rounds": 21,
        "population": 999,
        "max_participations": 3,
        "dataset_size": 5,
        "noise_source": "seeded-simulation",
        "cap": 9.0,
        "neighboring_relation": NeighboringRelation.REPLACE_ONE,
    }
    digests = {dataclasses.replace(plan, **{k: v}).digest() for k, v in changes.items()}
    assert len(digests | {plan.digest()}) == len(changes) + 1


def test_whole_numbers_and_floats_give_one_digest() -> None:
    ints = make_plan(**{**CENTRAL, "clipping_norm": 1, "noise_multiplier": 2})
    floats = make_plan(**{**CENTRAL, "clipping_norm": 1.0, "noise_multiplier": 2.0})
    assert ints.digest() == floats.digest()


@pytest.mark.parametrize("stored", [None, "{", [], {}, {"schema": 2}])
def test_a_plan_that_is_not_understood_is_refused(stored: object) -> None:
    with pytest.raises(SchemaMismatch):
        PrivacyPlan.from_json(stored)
    whole = make_plan(**CENTRAL).to_json()
    for broken in ({**whole, "extra": 1}, {**whole, "schema": 2}):
        with pytest.raises(SchemaMismatch):
            PrivacyPlan.from_json(broken)


def test_warnings_are_in_plain_words_and_only_where_due() -> None:
    calm = make_plan(
        **{**CENTRAL, "neighboring_relation": "replace-one", "noise_multiplier": 9.0},
        max_participations=2,
    )
    assert calm.warnings() == ()
    loud = make_plan(
        **{**CENTRAL, "delta": 0.02, "population": 50, "noise_multiplier": 0.3, "rounds": 60},
        noise_source="seeded-simulation",
    )
    text = " ".join(loud.warnings())
    for word in ("1/50", "above 10", "took part", "cohort of 5", "replace-one", "seed"):
        assert word in text
    assert "not compared" in " ".join(make_plan(**EXAMPLE).warnings())
    assert "1/20" in " ".join(make_plan(**{**EXAMPLE, "delta": 0.06}, dataset_size=20).warnings())
