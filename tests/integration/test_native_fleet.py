"""The native client in a real fleet: beside a Python node, against a real server's ServerApp."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.native.prepare import Owner, prepare_owner
from server.control.settings import enrol_address
from server.enrolling import issue_token
from server.fleetdb import FleetDatabase
from server.fleetruns import FleetRuns
from server.home import ServerHome
from server.prepared import read_metrics
from shared.config import RunConfig
from shared.configfile import resolve
from shared.privatefiles import replace_private
from simulations.fleetprepare import start_run
from tests.client.device import write_policy
from tests.client.native.build import binary, exported
from tests.integration.device import demo_digest, make_device
from tests.integration.edgestep import LORA
from tests.integration.fleetnode import TABLES, make_fleet_device, node_command
from tests.server.fleetkit import (
    make_home,
    process,
    supervisor_command,
    wait_until,
    wait_until_healthy,
)

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(900)]

PRIVACY = {
    "mode": "example",
    "neighboring_relation": "add-or-remove-one",
    "noise_multiplier": 1.0,
    "delta": 1e-4,
    "max_grad_norm": 0.5,
    "sampling_probability": 0.2,
}
SCENARIO = {
    **TABLES,
    "run": {"name": "fleet", "rounds": 2, "seed": 5},
    "lora": {"r": 2, **LORA},
    "server": {"deadline_seconds": 400.0, "quorum": 1.0},
    "privacy": PRIVACY,
}


def allow(folder: Path) -> Path:
    """Let a device take part in mode example, and in no other."""
    policy = write_policy(folder, "example", base_models=[demo_digest()])
    policy.chmod(0o600)
    return policy


def natively(home: ServerHome, client: Path, folder: Path, config: RunConfig) -> Path:
    """Let a device enroll by itself, and prepare it for the scenario."""
    with FleetDatabase(home.fleet_database) as fleet:
        token = issue_token(
            fleet,
            name="clinic-1",
            role="node",
            address=enrol_address(home.config),
            fingerprint=home.authority().fingerprint,
            valid_seconds=600,
        )
    command = [str(client), "enroll", "-", str(folder)]
    told = subprocess.run(command, input=token.to_text().encode(), capture_output=True, check=True)
    index = int(told.stdout.split()[-1])
    step, _ = exported()
    data = make_device(folder).folder / "notes.jsonl"
    owner = Owner(data=data, step=step, policy=allow(folder), client_index=index)
    conf = prepare_owner(owner, config, folder)
    pace = "poll_seconds = 0.5\nheartbeat_seconds = 10\n"
    replace_private(conf, conf.read_bytes() + pace.encode())
    return conf


def test_it_enrolls_and_answers_every_round_beside_a_python_node(tmp_path: Path) -> None:
    client = binary()
    home = make_home(tmp_path)
    resolved = resolve(SCENARIO, (), source="test")
    with ExitStack() as stack:
        stack.enter_context(process(home, supervisor_command(home)))
        wait_until_healthy(home)
        device = make_fleet_device(home, tmp_path / "node-0", "clinic-0")
        allow(device.path)
        conf = natively(home, client, tmp_path / "phone", resolved.config)
        start_run(home, resolved, name="one")
        runs = FleetRuns(home)
        log = device.path / "node.log"
        stack.enter_context(process(home, node_command(device), log=log, cwd=device.path))
        native = stack.enter_context(
            process(home, [str(client), "run", str(conf)], log=tmp_path / "native.log")
        )
        wait_until("the end", lambda: runs.view("one").state == "completed", seconds=700)
        native.send_signal(signal.SIGTERM)
        assert native.wait(60) == 0, (tmp_path / "native.log").read_text()
        renewed = [str(client), "renew", str(conf.parent)]
        assert subprocess.run(renewed, capture_output=True, check=True).stdout == b"renewed\n"
    records = read_metrics(runs.folder("one"))
    assert [record["answered"] for record in records] == [2, 2]
    said = (tmp_path / "native.log").read_text().splitlines()
    assert said.count("train answered") == 2
    ledger = (conf.parent / "state" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in ledger] == [1, 2]
    told = subprocess.run([str(client), "check", str(conf)], capture_output=True, check=True)
    assert told.stdout.startswith(b"answers 2,")
