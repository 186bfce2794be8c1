"""The native client in a real fleet: beside a Python node, against a real server's ServerApp."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.home import DeviceHome, NodeConfig
from client.native.prepare import prepare_home
from server.fleetruns import FleetRuns
from server.prepared import read_metrics
from shared.config import RunConfig
from shared.configfile import resolve
from shared.privatefiles import replace_private
from simulations.fleetprepare import start_run
from tests.client.device import write_policy
from tests.client.native.build import binary, exported
from tests.integration.device import demo_digest
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


def allow(device: DeviceHome) -> None:
    """Let a device take part in mode example, and in no other."""
    write_policy(device.path, "example", base_models=[demo_digest()])
    device.policy.chmod(0o600)


def natively(device: DeviceHome, config: RunConfig, out: Path) -> Path:
    """Prepare an enrolled device for the native client."""
    folder, manifest = exported()
    said = device.config.model_dump(by_alias=True)
    said |= {"base": str(folder), "runtime": "executorch", "step": manifest.digest}
    node = NodeConfig.of(said)
    replace_private(device.node_file, node.to_toml().encode())
    return prepare_home(DeviceHome.open(device.path), config, out)


def test_it_answers_every_round_beside_a_python_node(tmp_path: Path) -> None:
    client = binary()
    home = make_home(tmp_path)
    resolved = resolve(SCENARIO, (), source="test")
    with ExitStack() as stack:
        stack.enter_context(process(home, supervisor_command(home)))
        wait_until_healthy(home)
        devices = [make_fleet_device(home, tmp_path / f"node-{n}", f"clinic-{n}") for n in (0, 1)]
        for device in devices:
            allow(device)
        conf = natively(devices[1], resolved.config, tmp_path / "phone")
        start_run(home, resolved, name="one")
        runs = FleetRuns(home)
        log = devices[0].path / "node.log"
        command = node_command(devices[0])
        stack.enter_context(process(home, command, log=log, cwd=devices[0].path))
        native = stack.enter_context(
            process(home, [str(client), "run", str(conf)], log=tmp_path / "native.log")
        )
        wait_until("the end", lambda: runs.view("one").state == "completed", seconds=700)
        native.send_signal(signal.SIGTERM)
        assert native.wait(60) == 0, (tmp_path / "native.log").read_text()
    records = read_metrics(runs.folder("one"))
    assert [record["answered"] for record in records] == [2, 2]
    said = (tmp_path / "native.log").read_text().splitlines()
    assert said.count("train answered") == 2
    ledger = (conf.parent / "state" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in ledger] == [1, 2]
    told = subprocess.run([str(client), "check", str(conf)], capture_output=True, check=True)
    assert told.stdout.startswith(b"answers 2,")
