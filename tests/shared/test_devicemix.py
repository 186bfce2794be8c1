"""Fleets of mixed devices: who is what, what all share, and what a mix must be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.config import RunConfig
from shared.configfile import load_config, resolve
from shared.devicebounds import Bounds
from shared.devicemix import counts_of, plan_mix
from shared.devices import PROFILES
from shared.devicesettings import Limits
from shared.deviceshares import assigned
from tests.shared.deviceshapes import DEMO, spec_of
from tests.shared.test_deviceplan import ROOM, TABLES

HALVES = 'devices.mix={pi5 = 0.5, "phone-mid" = 0.5}'


def scenario(*changes: str) -> RunConfig:
    return resolve(TABLES, list(changes), source="test").config


@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    population=st.integers(0, 300),
    seed=st.integers(0, 2**40),
)
def test_counts_are_the_shares_to_less_than_one_client(
    weights: list[int], population: int, seed: int
) -> None:
    shares = {name: weight / sum(weights) for name, weight in zip(PROFILES, weights, strict=False)}
    names = assigned(shares, population=population, seed=seed)
    assert len(names) == population
    counts = Counter(names)
    assert all(abs(counts[name] - share * population) < 1 for name, share in shares.items())
    backwards = dict(reversed(shares.items()))
    assert assigned(backwards, population=population, seed=seed) == names


def test_who_is_what_depends_on_the_seed_alone() -> None:
    shares = {"pi5": 0.5, "laptop": 0.5}
    first = assigned(shares, population=100, seed=1)
    assert first == assigned(shares, population=100, seed=1)
    assert first != assigned(shares, population=100, seed=2)
    assert first != tuple(sorted(first))


def test_all_devices_of_a_run_share_what_the_digest_covers() -> None:
    limits = Limits(seconds=20.0, seconds_from="--max-seconds")
    config = scenario(HALVES, "model.quantization=nf4")
    mix = plan_mix(config, DEMO, spec_of(DEMO.linears, 8), limits=limits)
    shared = {
        (plan.r, plan.setup.max_length, plan.setup.local_steps, plan.setup.quantization)
        for plan in mix.together.values()
    }
    assert len(shared) == 1
    # A phone holds no nf4 and is slow; a Pi by itself would move nothing.
    assert mix.together["pi5"].setup.quantization == "int4"
    assert not [c for c in mix.alone["pi5"].choices if c.moved]
    assert mix.together["pi5"].setup.local_steps == mix.alone["phone-mid"].setup.local_steps < 8
    assert mix.slowest.profile.name == "phone-mid"
    assert mix.slowest.cost.seconds <= 20.0
    moved = {c.key: c.why for c in mix.together["pi5"].choices if c.moved}
    assert moved["clients.local_steps"] == "so that all devices of the run can"


def test_each_profile_may_have_its_own_rank_where_the_policy_takes_several() -> None:
    shape, spec = DEMO, spec_of(DEMO.linears, 8)
    phone = Bounds(scenario(), shape, spec, profile=PROFILES["phone-mid"], limits=ROOM)
    seconds = phone.cost(phone.said, 4).seconds
    limits = Limits(seconds=seconds * 1.0001, seconds_from="--max-seconds")
    mix = plan_mix(scenario(HALVES), shape, spec, limits=limits)
    assert mix.ranks == {"pi5": 8, "phone-mid": 4}
    assert {plan.setup.local_steps for plan in mix.together.values()} == {8}
    alike = plan_mix(scenario(HALVES, "aggregation.policy=fedavg"), shape, spec, limits=limits)
    assert len(set(alike.ranks.values())) == 1


def test_a_list_is_equal_shares_and_counts_need_a_population() -> None:
    config = scenario('devices.mix=["pi5", "laptop"]')
    assert config.devices.shares == {"pi5": 0.5, "laptop": 0.5}
    assert counts_of(config) == {"pi5": 5, "laptop": 5}
    unknown = config.model_copy(
        update={"clients": config.clients.model_copy(update={"population": None})}
    )
    assert counts_of(unknown) is None


def test_no_mix_cannot_be_planned() -> None:
    with pytest.raises(errors.ConflictingSettings, match=r"devices\.mix is empty"):
        plan_mix(scenario(), DEMO, spec_of(DEMO.linears, 8), limits=ROOM)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ('["pi5", "pi4"]', "pi5"),
        ('["pi5", "pi5"]', "twice"),
        ("{pi5 = 0.5, laptop = 0.4}", "sum to 0.9"),
        ("{pi5 = 1.5}", "sum to 1.5"),
        ("{pi5 = -1.0, laptop = 2.0}", "devices.mix"),
        ('"pi5"', "devices.mix"),
    ],
)
def test_a_mix_that_is_no_whole_is_refused(mix: str, said: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        scenario(f"devices.mix={mix}")
    assert said in str(caught.value)


def test_a_mix_is_written_and_read_back(tmp_path: Path) -> None:
    resolved = resolve(TABLES, [HALVES], source="test")
    path = tmp_path / "again.toml"
    path.write_text(resolved.to_toml(), encoding="utf-8")
    assert load_config(path).config.digest() == resolved.config.digest()
