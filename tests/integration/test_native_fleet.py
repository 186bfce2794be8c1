"""The native client in a real fleet: beside a Python node, against a real server's ServerApp."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.keyring import load_identity
from client.native.prepare import Owner, prepare_owner
from server.control.settings import enrol_address
from server.enrolling import issue_token
from server.fleetdb import FleetDatabase
from server.fleetruns import FleetRuns
from server.home import ServerHome
from server.prepared import read_metrics
from shared.config import RunConfig
from shared.configfile import ResolvedConfig, resolve
from shared.privatefiles import make_private_folder, replace_private
from shared.roster import write_roster
from simulations.fleetprepare import start_run
from tests.client.device import SECURE, write_policy
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

NODES = 3
PRIVACY = {
    "mode": "example",
    "neighboring_relation": "add-or-remove-one",
    "noise_multiplier": 1.0,
    "delta": 1e-4,
    "max_grad_norm": 0.5,
    "sampling_probability": 0.2,
}
SCENARIO: dict[str, dict[str, object]] = {
    **TABLES,
    "run": {"name": "fleet", "rounds": 2, "seed": 5},
    "clients": {**TABLES["clients"], "population": NODES},
    "lora": {"r": 2, **LORA},
    "server": {"deadline_seconds": 400.0, "quorum": 1.0},
    "privacy": PRIVACY,
}
SUM: dict[str, dict[str, object]] = {
    **SCENARIO,
    "run": {"name": "sum", "rounds": 1, "seed": 5},
    # Budgets are those of data, by name: each run has its own.
    "data": {**TABLES["data"], "path": "sum.jsonl"},
    "clients": {**TABLES["clients"], "population": NODES, "cohort": float(NODES)},
    "privacy": {
        "mode": "client-distributed",
        "neighboring_relation": "add-or-remove-one",
        "noise_multiplier": 4.0,
        "delta": 1e-4,
        "clipping_norm": 0.5,
        "honest_fraction": 0.6,
        "survivor_fraction": 0.9,
        "min_cohort": NODES,
    },
}


def allow(folder: Path) -> Path:
    """Let a device take part in mode example, and in no other."""
    policy = write_policy(folder, "example", base_models=[demo_digest()])
    policy.chmod(0o600)
    return policy


def allow_sums(folder: Path, roster: str) -> Path:
    """Let a device take part in secure sums with a roster, and in nothing else."""
    secure = SECURE | {"min_cohort": NODES}
    models = [demo_digest()]
    policy = write_policy(
        folder, "client-distributed", base_models=models, secure_aggregation=secure
    )
    policy.chmod(0o600)
    (folder / "roster.json").write_text(roster, encoding="utf-8")
    return policy


def told_by(*words: str | Path, said: str = "") -> str:
    """Run the native client."""
    command = [str(binary()), *map(str, words)]
    done = subprocess.run(command, input=said, capture_output=True, check=True, text=True)
    return done.stdout


def enroll(home: ServerHome, name: str, folder: Path) -> int:
    """Let a device enroll by itself; return its index."""
    with FleetDatabase(home.fleet_database) as fleet:
        token = issue_token(
            fleet,
            name=name,
            role="node",
            address=enrol_address(home.config),
            fingerprint=home.authority().fingerprint,
            valid_seconds=600,
        )
    return int(told_by("enroll", "-", folder, said=token.to_text()).split()[-1])


def prepared(folder: Path, index: int, policy: Path, config: RunConfig) -> Path:
    """Prepare a device that enrolled by itself."""
    step, _ = exported()
    place = folder / "data"
    place.mkdir()
    data = make_device(place).folder / "notes.jsonl"
    owner = Owner(data=data, step=step, policy=policy, client_index=index)
    conf = prepare_owner(owner, config, folder)
    pace = "poll_seconds = 0.5\nheartbeat_seconds = 10\n"
    replace_private(conf, conf.read_bytes() + pace.encode())
    return conf


def answered(
    home: ServerHome, confs: Sequence[Path], scenario: ResolvedConfig, *, roster: Path | None = None
) -> list[list[str]]:
    """Order a run and answer it natively; return what each native client said."""
    runs, name = FleetRuns(home), scenario.config.run.name
    with ExitStack() as stack:
        logs = [conf.parent / "native.log" for conf in confs]
        natives = [
            stack.enter_context(process(home, [str(binary()), "run", str(conf)], log=log))
            for conf, log in zip(confs, logs, strict=True)
        ]
        start_run(home, scenario, name=name, roster=roster)
        wait_until("the end", lambda: runs.view(name).state == "completed", seconds=700)
        for native, log in zip(natives, logs, strict=True):
            native.send_signal(signal.SIGTERM)
            assert native.wait(60) == 0, log.read_text()
    records = read_metrics(runs.folder(name))
    assert [record["answered"] for record in records] == [NODES] * scenario.config.run.rounds
    return [log.read_text().splitlines() for log in logs]


def rounds_of(conf: Path) -> list[int]:
    """Return which rounds a native client's ledger was charged for."""
    lines = (conf.parent / "state" / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)["round"] for line in lines]


def test_it_enrolls_and_answers_every_round_beside_a_python_node(tmp_path: Path) -> None:
    """A run of DP-SGD, then a secure sum of three clients, of whom two are native."""
    home = make_home(tmp_path)
    one, sums = (resolve(tables, (), source="test") for tables in (SCENARIO, SUM))
    with ExitStack() as stack:
        stack.enter_context(process(home, supervisor_command(home)))
        wait_until_healthy(home)
        device = make_fleet_device(home, tmp_path / "node-0", "clinic-0")
        policy = allow(device.path)
        phones = [tmp_path / f"phone-{n}" for n in (1, 2)]
        indices = [enroll(home, phone.name, phone) for phone in phones]
        assert indices == [1, 2]
        log = device.path / "node.log"
        stack.enter_context(process(home, node_command(device), log=log, cwd=device.path))
        confs = [
            prepared(phone, index, policy, one.config)
            for phone, index in zip(phones, indices, strict=True)
        ]
        for conf, said in zip(confs, answered(home, confs, one), strict=True):
            assert said.count("train answered") == 2
            assert rounds_of(conf) == [1, 2]
            assert told_by("check", conf).startswith("answers 2,")
        assert told_by("renew", phones[0]) == "renewed\n"
        # Another scenario needs another folder; the device and its key stay what they are.
        keys = {0: load_identity(device.state).public_key}
        folders = [tmp_path / f"sum-{n}" for n in indices]
        for phone, folder, index in zip(phones, folders, indices, strict=True):
            make_private_folder(folder)
            for name in ("node.key", "node.crt", "ca.crt", "device.conf"):
                shutil.copy2(phone / name, folder / name)
            keys[index] = bytes.fromhex(told_by("identity", folder).strip())
        policy = allow_sums(device.path, write_roster(keys))
        confs = [
            prepared(folder, index, policy, sums.config)
            for folder, index in zip(folders, indices, strict=True)
        ]
        roster = device.path / "roster.json"
        for conf, said in zip(confs, answered(home, confs, sums, roster=roster), strict=True):
            assert said.count("train answered") == 5  # the phases
            assert rounds_of(conf) == [1]
