"""The scenarios that come with the project: their canaries can be planted and read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from server.audit.canaries import MIN_CANARIES
from shared.config import RunConfig
from simulations.assemble import open_clients
from simulations.basepath import base_path
from simulations.canaries import WithCanaries, planted
from simulations.catalog import open_scenario, scenarios

HOME = Path(__file__).parents[2]
NAMES = [scenario.name for scenario in scenarios()]


def _needs(config: RunConfig) -> None:
    """Skip a scenario whose data or base model are not here."""
    for path in (config.data.path, config.model.base):
        if path.startswith("..") and not (HOME / path).exists():
            pytest.skip(f"{path} is not here")


@pytest.mark.parametrize("name", NAMES)
def test_the_canaries_of_a_scenario_fit_its_tokenizer_and_its_clients(name: str) -> None:
    config = open_scenario(name, ()).config
    _needs(config)
    assert base_path(config.model.base, base_dir=HOME)
    dataset, plan = open_clients(config, base_dir=HOME)
    kinds = Counter(canary.kind for canary in plan.canaries)
    if config.audit.canaries == 0:
        assert not kinds
        return
    assert kinds == dict.fromkeys(config.audit.kinds, config.audit.canaries)
    found = planted(plan)
    for texts in found.kinds:
        texts.require(MIN_CANARIES)
    secrets = found.of("secret")
    assert secrets is not None
    assert len(secrets.references) == config.audit.references
    planted_in = dataset.describe()
    assert planted_in["canaries"]
    if dataset.population >= len(plan.canaries):
        assert plan.per_client == 1


def test_a_scenario_without_canaries_needs_no_tokenizer(tmp_path: Path) -> None:
    missing = ["audit.canaries=0", 'model.base="nobody/has-this"']
    config = open_scenario("quickstart", missing).config
    dataset, plan = open_clients(config, base_dir=tmp_path)
    assert plan.canaries == ()
    assert isinstance(dataset, WithCanaries)
    assert dataset.client(0).train


def test_both_ways_to_open_clients_give_one_plan() -> None:
    from simulations.raretokens import open_tokenizer

    config = open_scenario("quickstart", ["clients.population=100"]).config
    tokenizer = open_tokenizer(base_path("demo", base_dir=HOME), revision=None)
    _, one = open_clients(config, base_dir=HOME)
    _, other = open_clients(config, base_dir=HOME, tokenizer=tokenizer)
    assert one == other
