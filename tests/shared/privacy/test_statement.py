from __future__ import annotations

import json
import math
from typing import Any

import pytest

from shared.errors import InvalidValue
from shared.privacy.advice import numbers_to_question
from shared.privacy.events import Composition
from shared.privacy.group import group_epsilon
from shared.privacy.likeness import slack
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from shared.privacy.statement import PrivacyStatement, figure, privacy_statement

BASE: dict[str, Any] = {
    "neighboring_relation": "add-or-remove-one",
    "noise_multiplier": 4.0,
    "rounds": 5,
    "population": 1000,
}
CENTRAL: dict[str, Any] = {
    **BASE,
    "mode": "client-central",
    "unit": "client",
    "delta": 1e-4,
    "clipping_norm": 0.5,
    "sampling_probability": 0.1,
}
EXAMPLE: dict[str, Any] = {
    **BASE,
    "mode": "example",
    "unit": "example",
    "delta": 1e-5,
    "max_grad_norm": 0.5,
    "sampling_probability": 0.05,
    "releases_per_round": 4,
    "dataset_size": 500,
}


DISTRIBUTED: dict[str, Any] = {
    **CENTRAL,
    "mode": "client-distributed",
    "honest_fraction": 0.9,
    "survivor_fraction": 0.75,
    "min_cohort": 40,
}
CORRELATED: dict[str, Any] = {
    **{key: value for key, value in CENTRAL.items() if key != "sampling_probability"},
    "mechanism": "correlated",
    "min_separation": 2,
}


def state(plan: PrivacyPlan, **more: Any) -> PrivacyStatement:
    args: dict[str, Any] = {"epsilon_spent": plan.epsilon(), "releases": 5, **more}
    return privacy_statement(plan, **args)


def topics(statement: PrivacyStatement) -> list[str]:
    return [clause.topic for clause in statement.clauses]


def text_of(statement: PrivacyStatement) -> str:
    return "\n".join(statement.lines())


@pytest.mark.parametrize(
    "base",
    [CENTRAL, EXAMPLE, DISTRIBUTED, CORRELATED],
    ids=["central", "example", "distributed", "correlated"],
)
def test_what_must_be_said_is_said_in_order(base: dict[str, Any]) -> None:
    statement = state(make_plan(**base))
    assert topics(statement)[:9] == [
        "unit",
        "adjacency",
        "epsilon",
        "accountant",
        "mechanism",
        "sampling",
        "composition",
        "observers",
        "who-sees-what",
    ]
    assert {"noise-source", "not-protected"} <= set(topics(statement))
    assert all(line.endswith(".") and line[0].isupper() for line in statement.lines())
    assert not any(clause.alarm for clause in statement.clauses)


def test_epsilon_never_stands_without_delta_unit_and_releases() -> None:
    lines = state(make_plan(**CENTRAL), epsilon_spent=1.23451, releases=3).lines()
    said = next(line for line in lines if "spent" in line)
    for part in ("epsilon = 1.235", "delta = 0.0001", "3 noised releases", "one client", "cap"):
        assert part in said


def test_numbers_are_rounded_up() -> None:
    said = text_of(state(make_plan(**CENTRAL), epsilon_spent=0.123411))
    assert "epsilon = 0.1235 at" in said
    assert "epsilon = 0 at" in text_of(state(make_plan(**CENTRAL), epsilon_spent=0.0, releases=0))


def test_an_infinite_figure_is_said_in_words() -> None:
    assert "epsilon = infinite at" in text_of(state(make_plan(**CENTRAL), epsilon_spent=math.inf))


def test_both_observers_and_the_server_are_named() -> None:
    plan = make_plan(**CENTRAL, max_participations=2)
    statement = state(plan)
    assert statement.epsilon_observer == plan.observer_epsilon() > plan.epsilon()
    assert statement.epsilon_server == math.inf
    said = text_of(statement)
    assert "enforced cap of 2 participations" in said
    assert "The server is trusted" in said
    assert "no cap below 5 participations" in text_of(state(make_plan(**CENTRAL)))


def test_distributed_noise_is_stated_with_what_it_rests_on() -> None:
    plan = make_plan(**DISTRIBUTED)
    statement = state(plan)
    assert statement.epsilon_server == plan.server_epsilon() > plan.observer_epsilon()
    said = text_of(statement)
    for part in (
        "privacy loss distributions",
        "that of the same releases with Gaussian noise, and at most",
        f"{figure(slack(Composition.of(plan.total_events())))} more",
        "Secure aggregation shows their sum alone",
        "A sample of fewer than 40 is filled up",
        "together with up to 0.1 of any cohort",
        f"epsilon = {figure(plan.server_epsilon())} at the same delta",
        "at least 0.9 of every cohort not colluding",
        "at least 0.75 of it being in the sum",
        "integers from an exact sampler",
    ):
        assert part in said
    assert "The server is trusted" not in said
    assert "Renyi divergences of" not in said


def test_a_coarse_grid_is_said_to_be_accounted_by_renyi() -> None:
    said = text_of(state(make_plan(**{**DISTRIBUTED, "population": 50_000_000})))
    assert "Renyi divergences of the Skellam mechanism" in said
    assert "too coarse for a tighter accountant" in said
    assert "PLD" not in said


def test_correlated_noise_is_one_release_without_sampling() -> None:
    plan = make_plan(**CORRELATED)
    statement = state(plan, releases=1)
    assert statement.epsilon_observer == plan.epsilon()
    said = text_of(statement)
    for part in (
        "in 1 noised release about one client",
        "in 1 release, the cap",
        "correlated over 2 rounds",
        "No secret sampling is counted on",
        "at most once in 2 rounds and 3 times in all",
        "enforced cap of 3 participations",
        "are one release",
    ):
        assert part in said
    assert "Poisson" not in said


def test_following_a_quantile_is_said_to_be_paid_for() -> None:
    terms = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=10.0, initial=0.5)
    plan = make_plan(**CENTRAL, quantile=terms)
    said = text_of(state(plan))
    # By hand: (4**-2 - 20**-2)**-0.5 = 1 / sqrt(0.06)
    for part in ("starts at 0.5", "0.5 quantile", "normal noise of 4.082 times", "deviation 10."):
        assert part in said


@pytest.mark.parametrize("outer", [CENTRAL, DISTRIBUTED], ids=["central", "distributed"])
def test_two_guarantees_are_both_stated(outer: dict[str, Any]) -> None:
    inner = make_plan(**EXAMPLE)
    statement = state(make_plan(**outer, example=inner))
    said = [clause.text for clause in statement.clauses if clause.topic == "second-guarantee"]
    assert len(said) == 2
    assert f"epsilon = {figure(inner.epsilon())} at delta = 1e-05 in 20 noised steps" in said[0]
    assert "the server included" in said[0]
    assert "probability 0.05 (Poisson sampling)" in said[1]
    trusted = "The server is trusted with each client's update" in text_of(statement)
    assert trusted == (outer is CENTRAL)


def test_a_server_that_is_hardly_bounded_is_questioned() -> None:
    ask: dict[str, Any] = {
        "unit": "client",
        "epsilon": 1.0,
        "observer_epsilon": 5.0,
        "delta": 1e-6,
        "units": 1000,
        "cohort": 100.0,
        "replace_one": True,
        "seeded": False,
    }
    assert numbers_to_question(**ask) == ()
    assert numbers_to_question(**ask, server_epsilon=9.0) == ()
    (doubt,) = numbers_to_question(**ask, server_epsilon=12.3)
    assert "epsilon=12.3" in doubt


def test_example_level_is_never_called_person_level() -> None:
    plan = make_plan(**EXAMPLE)
    assert "How many examples one person may own was not stated" in text_of(state(plan))
    statement = state(plan, examples_per_person=3)
    expected = group_epsilon(
        plan.total_events(),
        size=3,
        delta=1e-5,
        relation=plan.neighboring_relation or "add",  # type: ignore[arg-type]
    )
    assert statement.epsilon_group == expected > plan.epsilon()
    assert statement.group_size == 3
    assert "With at most 3 examples of one person" in text_of(statement)
    assert "the server and the network included" in text_of(statement)


def test_a_person_may_own_several_clients() -> None:
    plan = make_plan(**CENTRAL)
    assert "owns 2 clients" in text_of(state(plan, examples_per_person=2))
    assert "not-per-person" not in topics(state(plan, examples_per_person=1))


def test_replace_one_is_explained() -> None:
    plan = make_plan(**{**CENTRAL, "neighboring_relation": "replace-one"})
    assert "one client is replaced by any other (replace-one)" in text_of(state(plan))


def test_seeded_noise_is_an_alarm() -> None:
    statement = state(make_plan(**CENTRAL, noise_source="seeded-simulation"))
    alarms = [clause for clause in statement.clauses if clause.alarm]
    assert [clause.topic for clause in alarms] == ["noise-source"]
    assert "protects nobody" in alarms[0].text


def test_losses_are_disclosed_where_they_were_measured() -> None:
    plan = make_plan(**CENTRAL)
    assert "Held-out losses" in text_of(state(plan))
    assert "Held-out losses" not in text_of(state(plan, losses_measured=False))


def test_mode_none_is_red_from_the_first_word_to_the_last() -> None:
    plan = make_plan(mode="none", rounds=3, population=5)
    for measured in (True, False):
        statement = state(plan, losses_measured=measured)
        assert all(clause.alarm for clause in statement.clauses)
        assert statement.lines()[0].startswith("NO PRIVACY")
        assert statement.epsilon == statement.epsilon_server == math.inf
        assert statement.releases == 0


@pytest.mark.parametrize("base", [CENTRAL, EXAMPLE, {**CENTRAL, "mode": "none"}])
def test_the_json_form_is_json(base: dict[str, Any]) -> None:
    statement = state(make_plan(**base))
    data = json.loads(json.dumps(statement.to_dict(), allow_nan=False))
    assert [clause["text"] for clause in data["clauses"]] == list(statement.lines())
    assert data["epsilon"] == (statement.epsilon if math.isfinite(statement.epsilon) else None)
    assert set(data) == {
        "epsilon",
        "epsilon_rdp",
        "epsilon_observer",
        "epsilon_server",
        "epsilon_group",
        "delta",
        "releases",
        "group_size",
        "clauses",
    }


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon_spent": math.nan},
        {"epsilon_spent": -1.0},
        {"epsilon_spent": -math.inf},
        {"releases": -1},
        {"releases": 1.5},
        {"examples_per_person": 0},
    ],
)
def test_bad_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        state(make_plan(**CENTRAL), **bad)


def test_a_distributed_plan_is_questioned_about_its_server() -> None:
    plan = make_plan(**{**DISTRIBUTED, "noise_multiplier": 0.6})
    assert plan.server_epsilon() > 10
    assert any(text.startswith("the server, with the clients") for text in plan.warnings())
    central = make_plan(**{**CENTRAL, "noise_multiplier": 0.6})
    assert not any("the server, with" in text for text in central.warnings())
