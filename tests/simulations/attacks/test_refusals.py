"""Simulated attackers stay in simulations: no server of a fleet and no device takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.policy import ClientPolicy
from server.home import ServerHome
from server.prepared import IDENTITY, describe_run, read_setup
from server.settings import ServerConfig
from shared.configattack import AttackSection
from shared.configfile import resolve
from shared.errors import ConflictingSettings
from shared.lora import AdapterSpec, Factor
from shared.scenarioplan import plan_of
from simulations.fleetprepare import start_run
from tests.client.device import BASE, plan, scenario, write_policy
from tests.integration.scenario import TABLES

ATTACK = ["attack.kind=backdoor", "attack.share=0.1"]


def test_a_device_names_it_as_a_reason(tmp_path: Path) -> None:
    policy = ClientPolicy.load(write_policy(tmp_path))
    honest = scenario()
    attacked = honest.model_copy(update={"attack": AttackSection(kind="sign-flip", share=0.1)})
    assert policy.refusals(plan(), honest, base_digest=BASE) == ()
    (reason,) = policy.refusals(plan(), attacked, base_digest=BASE)
    assert (reason.limit, reason.found) == ("attack", "'sign-flip'")


def test_a_server_orders_no_run_of_it(tmp_path: Path) -> None:
    home = ServerHome.create(tmp_path / "server", ServerConfig.model_validate({"name": "one"}))
    with pytest.raises(ConflictingSettings, match="attackers are simulated"):
        start_run(home, resolve(TABLES, ATTACK, source="test"), name="run")
    assert not home.run_folder("run").exists()


def test_a_prepared_run_of_it_is_not_taken_up(tmp_path: Path) -> None:
    shapes = (("a.lora_A", "A", (2, 3)), ("a.lora_B", "B", (3, 2)))
    factors = tuple(Factor(name=name, kind=kind, shape=shape) for name, kind, shape in shapes)
    spec = AdapterSpec(factors=factors, r=2, lora_alpha=2.0, target_modules=("a",))
    for sets in ([], ATTACK):
        config = resolve(TABLES, sets, source="test").config
        identity = describe_run(config, plan_of(config, population=12), spec, 12)
        (tmp_path / IDENTITY).write_text(json.dumps(identity), encoding="utf-8")
        if not sets:
            assert read_setup(tmp_path).config == config
            continue
        with pytest.raises(ConflictingSettings, match="attackers are simulated"):
            read_setup(tmp_path)
