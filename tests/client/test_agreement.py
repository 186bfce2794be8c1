"""A plan says what its scenario says, field by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from client.agreement import require_agreement
from shared.config import ExampleSection, RunConfig
from shared.errors import SchemaMismatch
from shared.privacy.events import NeighboringRelation
from shared.privacy.noise import SEEDED
from shared.scenarioplan import plan_of
from tests.client.device import plan, scenario

DERIVED: dict[str, Any] = {"noise_multiplier": None, "epsilon": 3.0}
DISTRIBUTED: dict[str, Any] = {"honest_fraction": 0.8, "survivor_fraction": 0.9, "min_cohort": 4}
STEPS: dict[str, Any] = {
    "neighboring_relation": "add-or-remove-one",
    "noise_multiplier": 1.5,
    "delta": 1e-6,
    "max_grad_norm": 0.4,
    "sampling_probability": 0.1,
}
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "example": ("example", {}),
    "example, derived": ("example", DERIVED),
    "central": ("client-central", {}),
    "central, derived": ("client-central", {**DERIVED, "cap": 3.5}),
    "central, quantile": ("client-central", {"clipping_quantile": 0.5, "count_noise_stddev": 2.0}),
    "central, correlated": ("client-central", {"mechanism": "correlated", "bands": 2}),
    "distributed": ("client-distributed", DISTRIBUTED),
    "distributed, derived": ("client-distributed", {**DISTRIBUTED, **DERIVED}),
    "none, with all that it ignores": ("none", {**DISTRIBUTED, **DERIVED}),
}


def both(mode: str = "client-central", **steps: Any) -> RunConfig:
    """Return a scenario with DP-SGD inside each client."""
    config = scenario(mode)
    return config.model_copy(update={"example": ExampleSection(**{**STEPS, **steps})})


@pytest.mark.parametrize("name", SAID)
def test_the_plan_of_a_scenario_agrees_with_it(name: str) -> None:
    mode, said = SAID[name]
    config = scenario(mode, **said)
    require_agreement(config, plan_of(config, population=10))


@pytest.mark.parametrize("steps", [{}, {"noise_multiplier": None, "epsilon": 2.0}], ids=str)
def test_dp_sgd_beside_a_client_mode_agrees_too(steps: dict[str, Any]) -> None:
    config = both(**steps)
    good = plan_of(config, population=10)
    assert good.example is not None
    require_agreement(config, good)
    twin = both("none", **steps)
    require_agreement(twin, plan_of(twin, population=10))
    other = replace(good, example=replace(good.example, delta=1e-3))
    with pytest.raises(SchemaMismatch, match=r"example\.delta: the plan says 0\.001"):
        require_agreement(config, other)
    weaker = replace(good.example, noise_multiplier=(good.example.noise_multiplier or 0) * 0.9)
    with pytest.raises(SchemaMismatch, match=r"example\.(epsilon|noise_multiplier): the plan"):
        require_agreement(config, replace(good, example=weaker))
    with pytest.raises(SchemaMismatch, match=r"example: the scenario has DP-SGD .* the plan has"):
        require_agreement(config, replace(good, example=None))
    with pytest.raises(SchemaMismatch, match=r"example: the plan has DP-SGD .* the scenario has"):
        require_agreement(scenario("client-central"), good)


@pytest.mark.parametrize(
    ("mode", "said", "field", "change"),
    [
        ("client-distributed", DISTRIBUTED, "distributed", {"honest_fraction": 1.0}),
        ("client-distributed", DISTRIBUTED, "distributed", {"survivor_fraction": 1.0}),
        ("client-distributed", DISTRIBUTED, "distributed", {"min_cohort": 5}),
        ("client-distributed", DISTRIBUTED, "distributed", {"grid": 1}),
        ("client-central", {"mechanism": "correlated"}, "correlated", {"min_separation": 5}),
        ("client-central", {"mechanism": "correlated"}, "correlated", {"bands": 1}),
        ("client-central", {"clipping_quantile": 0.5}, "quantile", {"target": 0.9}),
    ],
)
def test_the_terms_of_a_mechanism_are_compared(
    mode: str, said: dict[str, Any], field: str, change: dict[str, Any]
) -> None:
    config = scenario(mode, **said, **({"noise_multiplier": 0.4} if field == "quantile" else {}))
    good = plan_of(config, population=10)
    other = replace(good, **{field: replace(getattr(good, field), **change)})
    with pytest.raises(SchemaMismatch, match=f"{field}: the plan says"):
        require_agreement(config, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", 6),
        ("releases_per_round", 3),
        ("sampling_probability", 0.3),
        ("noise_multiplier", 0.9),
        ("noise_multiplier", 1.1),
        ("max_grad_norm", 0.6),
        ("delta", 1e-3),
        ("neighboring_relation", NeighboringRelation.REPLACE_ONE),
        ("noise_source", SEEDED),
        ("max_participations", 2),
    ],
)
def test_each_field_of_an_example_plan_is_compared(field: str, value: Any) -> None:
    config = scenario()
    other = replace(plan_of(config, population=10), **{field: value})
    with pytest.raises(SchemaMismatch, match=f"not that of the scenario: {field}: the plan says"):
        require_agreement(config, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [("clipping_norm", 0.6), ("sampling_probability", 0.4), ("rounds", 4), ("population", 11)],
)
def test_each_field_of_a_client_plan_is_compared(field: str, value: Any) -> None:
    config = scenario("client-central")
    other = replace(plan_of(config, population=10), **{field: value})
    with pytest.raises(SchemaMismatch, match="not that of the scenario"):
        require_agreement(config, other)


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("client-central", "example"),
        ("example", "client-central"),
        ("none", "example"),
        ("example", "none"),
    ],
)
def test_another_mode_is_named_alone(said: str, sent: str) -> None:
    reason = f"scenario: mode: the plan says '{sent}', the scenario '{said}'\\. Plan"
    with pytest.raises(SchemaMismatch, match=reason):
        require_agreement(scenario(said), plan(sent))


def test_derived_noise_must_reach_its_epsilon() -> None:
    config = scenario(**DERIVED)
    good = plan_of(config, population=10)
    assert good.noise_multiplier is not None
    require_agreement(config, replace(good, noise_multiplier=good.noise_multiplier * 1.01))
    with pytest.raises(SchemaMismatch, match=r"epsilon: the plan spends 3\.\d+, .* says 3\b"):
        require_agreement(config, replace(good, noise_multiplier=good.noise_multiplier * 0.99))


def test_a_raised_cap_is_found() -> None:
    config = scenario(**DERIVED)
    good = plan_of(config, population=10)
    with pytest.raises(SchemaMismatch, match=r"cap: the plan says 4\.0, the scenario 3\.0"):
        require_agreement(config, replace(good, cap=4.0))
    capped = scenario(cap=9.0)
    require_agreement(capped, replace(plan_of(capped, population=10), cap=8.0))
    with pytest.raises(SchemaMismatch, match="cap"):
        require_agreement(capped, replace(plan_of(capped, population=10), cap=9.5))


def test_all_differences_come_at_once() -> None:
    config = scenario()
    other = replace(plan_of(config, population=10), rounds=9, delta=1e-2)
    with pytest.raises(SchemaMismatch, match=r"delta: .*; rounds: "):
        require_agreement(config, other)
