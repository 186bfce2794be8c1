"""The planner: what it may move alone, what it proposes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.baseshape import GEMMA_270M, BaseShape
from shared.config import RunConfig
from shared.configfile import resolve
from shared.devicebounds import Bounds
from shared.deviceplan import Planner
from shared.devices import PROFILES, DeviceProfile
from shared.devicesettings import DevicePlan, Limits, setup_of
from shared.planeffect import effect_of
from shared.scenarioplan import plan_of
from tests.shared.deviceshapes import ATTENTION_270M, DEMO, spec_of

TABLES: dict[str, dict[str, Any]] = {
    "run": {"name": "t", "rounds": 5},
    "model": {"quantization": "none"},
    "lora": {"r": 8},
    "data": {"path": "notes.jsonl", "partitioner": "iid", "max_length": 128},
    "clients": {"population": 10, "local_steps": 8, "batch_size": 16},
    "privacy": {
        "mode": "example",
        "neighboring_relation": "add-or-remove-one",
        "epsilon": 8.0,
        "delta": 1e-4,
        "max_grad_norm": 1.0,
        "sampling_probability": 0.1,
    },
}
OWN = {
    "model.quantization",
    "performance.cache_dequantized",
    "performance.clipper",
    "performance.physical_batch",
}
ROOM = Limits(seconds=1e9, seconds_from="test")


def scenario(*changes: str) -> RunConfig:
    return resolve(TABLES, list(changes), source="test").config


def device(**changes: object) -> DeviceProfile:
    table = PROFILES["pi5"].model_dump() | {"name": "custom", **changes}
    return DeviceProfile.model_validate(table)


def planned(
    config: RunConfig,
    profile: DeviceProfile,
    limits: Limits = ROOM,
    shape: BaseShape = DEMO,
) -> DevicePlan:
    linears = DEMO.linears if shape is DEMO else ATTENTION_270M
    spec = spec_of(linears, config.lora.r)
    return Planner(config, shape, spec, profile=profile, limits=limits).plan()


def test_a_scenario_that_fits_stays_as_it_is() -> None:
    plan = planned(scenario(), device(memory_mib=1e5))
    assert not [choice for choice in plan.choices if choice.moved]
    assert plan.setup == setup_of(scenario())
    assert {choice.key for choice in plan.choices if choice.neutral} == OWN


def test_short_memory_moves_only_what_the_privacy_plan_does_not_read() -> None:
    config = scenario()
    plan = planned(config, device(memory_mib=1500.0), shape=GEMMA_270M)
    moved = {choice.key: choice for choice in plan.moved(neutral=True)}
    assert set(moved) <= OWN
    assert not plan.moved(neutral=False)
    assert moved["model.quantization"].chosen != "none"
    assert "MiB of 1500" in moved["model.quantization"].why
    assert plan.cost.memory.total <= 1500 * 2**20
    changes = [f"{key}={str(c.chosen).lower()}" for key, c in moved.items()]
    # The oracle is the plan itself: noise, sampling and releases are what they were.
    changed = resolve(TABLES, changes, source="test").config
    assert plan_of(changed, population=10).digest() == plan_of(config, population=10).digest()


def test_a_base_is_only_stored_as_the_device_can() -> None:
    plan = planned(scenario("model.quantization=nf4"), PROFILES["phone-mid"])
    assert plan.setup.quantization == "int4"
    assert "cannot hold nf4" in next(c.why for c in plan.choices if c.key == "model.quantization")
    above = planned(scenario("model.quantization=nf4"), device(quantizations=("none", "int8")))
    assert above.setup.quantization == "int8"


def test_a_short_round_proposes_fewer_steps_as_many_as_there_is_time_for() -> None:
    limits = Limits(seconds=1.0, seconds_from="--max-seconds")
    config = scenario()
    plan = planned(config, device(), limits)
    (choice,) = plan.moved(neutral=False)
    assert choice.key == "clients.local_steps"
    assert "1 s a round (--max-seconds)" in choice.why
    assert plan.cost.seconds <= 1.0
    one_more = replace(plan.setup, local_steps=plan.setup.local_steps + 1)
    planner = Planner(config, DEMO, spec_of(DEMO.linears, 8), profile=device(), limits=limits)
    assert planner.cost(one_more, 8).seconds > 1.0
    assert 1 <= plan.setup.local_steps < 8


def test_where_one_step_is_too_long_examples_become_shorter() -> None:
    plan = planned(scenario(), device(), Limits(seconds=0.12, seconds_from="--max-seconds"))
    keys = {choice.key for choice in plan.moved(neutral=False)}
    assert "data.max_length" in keys
    assert plan.cost.seconds <= 0.12


def test_a_slow_link_makes_the_adapter_thinner() -> None:
    slow = device(up_bytes_per_second=1e4, down_bytes_per_second=1e6)
    plan = planned(scenario(), slow, Limits(seconds=10.0, seconds_from="--max-seconds"))
    assert "lora.r" in {choice.key for choice in plan.moved(neutral=False)}
    assert plan.cost.transfer_seconds < 10.0


def test_a_battery_bounds_a_days_rounds_by_how_often_a_device_is_drawn() -> None:
    phone = PROFILES["phone-mid"]
    often = Limits(seconds=1e9, seconds_from="test", rounds_per_day=200.0)
    plan = planned(scenario(), phone, often)
    choice = next(c for c in plan.choices if c.key == "clients.local_steps")
    assert choice.moved
    assert "battery" in choice.why
    assert 200 * plan.cost.joules <= 0.1 * 6.2e4
    rarely = replace(often, participation=0.05)
    assert planned(scenario(), phone, rarely).setup.local_steps == 8


def test_a_day_bounds_its_rounds_on_mains() -> None:
    often = Limits(seconds=1e9, seconds_from="test", rounds_per_day=1e5)
    plan = planned(scenario(), device(), often)
    assert 1e5 * plan.cost.seconds <= 86_400
    assert plan.setup.local_steps < 8


def test_what_fits_nowhere_is_one_error_with_the_smallest_need() -> None:
    with pytest.raises(errors.ConflictingSettings, match=r"needs \d+ MiB, the device has 400"):
        planned(scenario(), device(memory_mib=400.0))
    with pytest.raises(errors.ConflictingSettings, match=r"takes .* s and .* J, the limit is"):
        planned(scenario(), device(), Limits(seconds=1e-6, seconds_from="--max-seconds"))
    assert errors.ConflictingSettings.exit_code == 14


def test_steps_that_depend_on_the_data_are_not_planned() -> None:
    table = {**TABLES, "clients": {"population": 10, "local_epochs": 1.0}}
    config = resolve({**table, "privacy": {"mode": "none"}}, source="test").config
    with pytest.raises(errors.ConflictingSettings, match="records"):
        setup_of(config)


@given(
    memory=st.floats(500, 8000),
    seconds=st.floats(0.05, 50),
    quantization=st.sampled_from(["none", "int8", "torchao-int8", "int4", "nf4"]),
    physical=st.integers(1, 100),
    mode=st.sampled_from(["example", "none"]),
)
def test_whatever_is_planned_keeps_every_limit(
    memory: float, seconds: float, quantization: str, physical: int, mode: str
) -> None:
    config = scenario(
        f"model.quantization={quantization}",
        f"performance.physical_batch={physical}",
        f"privacy.mode={mode}",
    )
    limits = Limits(seconds=seconds, seconds_from="test")
    try:
        plan = planned(config, device(memory_mib=memory), limits)
    except errors.ConflictingSettings:
        # The least there is: rank 1, 16 tokens, one step.
        assert memory < 520 or seconds < 0.2
        return
    assert plan.cost.memory.total <= memory * 2**20
    assert plan.cost.seconds <= seconds
    assert plan.setup.batch_size == 16
    assert plan.r <= 8
    assert plan.setup.max_length <= 128
    assert plan.setup.local_steps <= 8
    assert plan.setup.physical_batch <= physical


def test_fewer_steps_need_less_noise_for_the_same_epsilon() -> None:
    before, after = scenario(), scenario("clients.local_steps=2")
    effect = effect_of(before, after, population=10)
    assert effect is not None
    assert not effect.none
    assert effect.noise_multiplier[0] == plan_of(before, population=10).noise_multiplier
    assert effect.noise_multiplier[1] == plan_of(after, population=10).noise_multiplier
    assert effect.noise_multiplier[1] < effect.noise_multiplier[0]
    assert effect.epsilon == pytest.approx((8.0, 8.0), rel=2e-3)
    assert "for epsilon" in str(effect)


def test_given_noise_more_steps_cost_epsilon() -> None:
    table = {k: v for k, v in TABLES["privacy"].items() if k != "epsilon"}
    tables = {**TABLES, "privacy": {**table, "noise_multiplier": 1.0}}
    before = resolve(tables, source="test").config
    after = resolve(tables, ["clients.local_steps=16"], source="test").config
    effect = effect_of(before, after, population=10)
    assert effect is not None
    assert effect.epsilon[1] > effect.epsilon[0]
    assert "epsilon" in str(effect)


def test_a_rank_leaves_the_plan_alone_and_mode_none_has_none() -> None:
    effect = effect_of(scenario(), scenario("lora.r=2"), population=10)
    assert effect is not None
    assert effect.none
    assert str(effect) == "the plan stays what it is"
    public = scenario("privacy.mode=none")
    assert effect_of(public, public, population=10) is None


def test_the_plan_of_steps_is_told_where_it_stands_beside_a_client_mode() -> None:
    tables = {
        **TABLES,
        "privacy": {
            "mode": "client-central",
            "neighboring_relation": "add-or-remove-one",
            "epsilon": 8.0,
            "delta": 1e-4,
            "clipping_norm": 1.0,
        },
        "example": {k: v for k, v in TABLES["privacy"].items() if k != "mode"},
    }
    before = resolve(tables, source="test").config
    after = resolve(tables, ["clients.local_steps=1"], source="test").config
    effect = effect_of(before, after, population=10)
    assert effect is not None
    assert effect.noise_multiplier[1] < effect.noise_multiplier[0]


def test_a_policy_that_alternates_is_planned_for_its_dearer_round() -> None:
    setup = setup_of(scenario("aggregation.policy=rolora"))
    assert (setup.kinds, setup.kinds_down) == ("A", "AB")
    plain = setup_of(scenario())
    assert (plain.kinds, plain.kinds_down) == ("B", "B")


@pytest.mark.parametrize("r", [4, 2])
def test_a_device_thins_its_own_rank_before_it_asks_all_for_fewer_steps(r: int) -> None:
    """Down to a quarter; the bound is what the round costs at that rank, by the cost model."""
    config, phone = scenario(), PROFILES["phone-mid"]
    bounds = Bounds(config, DEMO, spec_of(DEMO.linears, 8), profile=phone, limits=ROOM)
    seconds = bounds.cost(bounds.said, r).seconds
    limits = Limits(seconds=seconds * 1.0001, seconds_from="--max-seconds")
    plan = planned(config, phone, limits)
    assert (plan.r, plan.setup.local_steps) == (r, 8)
    (choice,) = plan.moved(neutral=False)
    assert choice.why.startswith("time: else")
    alike = planned(scenario("aggregation.policy=fedavg"), phone, limits)
    assert alike.r == 8
    assert alike.setup.local_steps < 8


def test_below_a_quarter_steps_go_before_the_rank() -> None:
    config, phone = scenario(), PROFILES["phone-mid"]
    bounds = Bounds(config, DEMO, spec_of(DEMO.linears, 8), profile=phone, limits=ROOM)
    seconds = bounds.cost(bounds.said, 1).seconds
    plan = planned(config, phone, Limits(seconds=seconds * 1.0001, seconds_from="test"))
    assert plan.r == 8
    assert plan.setup.local_steps < 8
