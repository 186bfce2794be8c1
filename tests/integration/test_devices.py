"""Federations of whole devices: every owner's policy and ledger, and a server that is watched."""

from __future__ import annotations

import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Context

from client import node
from client.app import client_index, make_client_app
from client.charges import CLIENT, EXAMPLE
from client.keyring import load_identity
from client.node import runtime_of_node
from client.participant import Participant
from client.state import DeviceState
from server.budget import RunBudget
from server.prepared import open_ledger
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.canonical import canonical_json
from shared.config import RunConfig
from shared.errors import QuorumNotReached
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import NeighboringRelation, SkellamEvent
from shared.privacy.secagg.keys import Roster
from shared.roster import write_roster
from shared.scenarioplan import plan_of
from simulations.assemble import load_model
from simulations.engine import InProcessGrid
from tests.client.device import CLIENT as BUDGET
from tests.client.device import SECURE, scenario
from tests.integration.device import Device, make_device

pytestmark = pytest.mark.slow

DISTRIBUTED: dict[str, Any] = {
    "noise_multiplier": 4.0,
    "honest_fraction": 0.8,
    "survivor_fraction": 0.8,
    "min_cohort": 4,
}


class Quiet:
    """Watches a run and says nothing."""

    def started(self, server_round: int, cohort: int) -> None:
        """A round begins."""

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """A client answered."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """A round is over."""


def config_of(mode: str, *, clients: int, rounds: int, seed: int = 5, **said: Any) -> RunConfig:
    """Return a scenario in which every device takes part in every round."""
    config = scenario(mode, **said)
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"rounds": rounds, "seed": seed}),
            "clients": config.clients.model_copy(update={"population": clients, "cohort": None}),
        }
    )


def devices(folder: Path, count: int, mode: str, **policy: Any) -> list[Device]:
    """Make devices, each in a folder of its own."""
    made = []
    for number in range(count):
        own = folder / f"device-{number}"
        own.mkdir()
        made.append(make_device(own, mode, **policy))
    return made


def serve(
    folder: Path, config: RunConfig, members: Sequence[Device], roster: Roster | None = None
) -> FederatedRun:
    """Run all rounds of a server in a folder over the devices' own ClientApps."""
    folder.mkdir(exist_ok=True)
    plan = plan_of(config, population=len(members))
    said = {"scenario": config.to_json(), "plan": canonical_json(plan.to_json())}
    built: defaultdict[int, dict[Any, Any]] = defaultdict(dict)

    def runtime_of(context: Context) -> Participant:
        """Every device is a process of its own, which keeps its runtime."""
        number = client_index(context)
        with patch.object(node, "_BUILT", built[number]):
            return runtime_of_node(said, members[number].node())

    app = make_client_app(runtime_of)
    setup = RunSetup(
        run_id=f"run-{config.run.seed}",
        config=config,
        plan=plan,
        spec=load_model(config, base_dir=folder).spec,
        population=len(members),
        folder=folder,
        roster=roster,
    )
    with open_ledger(folder) as ledger:
        budget = RunBudget(ledger, plan=plan, run_id=setup.run_id, scope="notes")
        run = FederatedRun(setup, budget=budget, observer=Quiet())
        run.train(run.connect(InProcessGrid(app, len(members))))
    return run


def test_devices_remember_the_server_and_notice_that_it_forgot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's ledger is deleted after two rounds; every device refuses the next run."""
    members = devices(tmp_path, 2, "example")
    run = serve(tmp_path / "server", config_of("example", clients=2, rounds=2), members)
    assert np.abs(run.vector - run.initial_vector).max() > 0
    for device in members:
        assert device.releases(EXAMPLE) == 4.0
        with DeviceState(device.state) as state:
            [head] = state.heads()
        assert head.seq > 0
    for path in (tmp_path / "server").glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "ledger.key":
            path.unlink()
    with caplog.at_level(logging.WARNING), pytest.raises(QuorumNotReached):
        serve(tmp_path / "server", config_of("example", clients=2, rounds=2, seed=6), members)
    assert caplog.text.count("refused [ledger-tampered]: The server's ledger went back") == 2
    assert [device.releases(EXAMPLE) for device in members] == [4.0, 4.0]


def test_devices_notice_another_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = devices(tmp_path, 2, "example")
    serve(tmp_path / "one", config_of("example", clients=2, rounds=1), members)
    with caplog.at_level(logging.WARNING), pytest.raises(QuorumNotReached):
        serve(tmp_path / "two", config_of("example", clients=2, rounds=1, seed=6), members)
    assert caplog.text.count("is signed by key") == 2


def test_devices_add_their_noise_behind_secure_aggregation(tmp_path: Path) -> None:
    """Every device has its own identity, and counts against the server what the server knows."""
    members = devices(tmp_path, 5, "client-distributed", secure_aggregation=SECURE)
    keys = {n: load_identity(device.state).public_key for n, device in enumerate(members)}
    for device in members:
        (device.folder / "roster.json").write_text(write_roster(keys), encoding="utf-8")
    config = config_of("client-distributed", clients=5, rounds=1, **DISTRIBUTED)
    run = serve(tmp_path / "server", config, members, Roster(keys))
    assert run.last_record["aborted"] is None
    assert np.abs(run.vector - run.initial_vector).max() > 0
    known = 4.0 * math.sqrt(0.8 + SECURE["honest_fraction"] - 1)
    terms = plan_of(config, population=5).distributed
    assert terms is not None
    against_server = epsilon_of(
        SkellamEvent(noise_multiplier=known, grid=terms.grid),
        delta=BUDGET["delta"],
        relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    for device in members:
        assert device.releases(CLIENT) == 1.0
        with DeviceState(device.state) as state:
            [spent] = state.spent()
        assert spent.epsilon == pytest.approx(against_server, rel=1e-6)


def test_a_device_that_is_not_enrolled_stays_out(tmp_path: Path) -> None:
    members = devices(tmp_path, 5, "client-distributed", secure_aggregation=SECURE)
    keys = {n: load_identity(device.state).public_key for n, device in enumerate(members)}
    for device in members:
        (device.folder / "roster.json").write_text(write_roster(keys), encoding="utf-8")
    other = {**keys, 4: load_identity(tmp_path / "stranger").public_key}
    (members[4].folder / "roster.json").write_text(write_roster(other), encoding="utf-8")
    config = config_of("client-distributed", clients=5, rounds=1, **DISTRIBUTED)
    serve(tmp_path / "server", config, members, Roster(keys))
    assert [device.releases(CLIENT) for device in members] == [1.0, 1.0, 1.0, 1.0, 0.0]
