"""``fedslm up``, as a person runs it: from nothing to a finished run, or to Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from client.adapterstore import AdapterStore
from client.home import DeviceHome
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from server.registry.opening import server_registry
from tests.server.fleetkit import ROOT, alive, family_of

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(900)]

NODES = 3
# Small enough for a busy machine.
SMALL = (
    "data.records=24",
    "data.max_length=48",
    "clients.local_steps=1",
    "privacy.sampling_probability=0.25",
    "clients.batch_size=4",
)
UNAUDITED = ("--set", 'audit.profile="none"')


class Up:
    """One ``fedslm up`` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = folder / "fleet"
        self.process: subprocess.Popen[str] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment: this tree, and a home of its own."""
        config = {"XDG_CONFIG_HOME": str(self.folder / "config")}
        return os.environ | config | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start it."""
        settings = [word for change in SMALL for word in ("--set", change.replace("'", '"'))]
        command = [sys.executable, "-m", "simulations.cli", "up", "--dir", str(self.fleet)]
        with (self.folder / "stderr").open("a") as errors:
            self.process = subprocess.Popen(
                [*command, "--nodes", str(NODES), "--rounds", "2", *settings, *words],
                cwd=self.folder,
                env=self.variables,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        return self.process

    def say(self, *words: str) -> dict[str, Any]:
        """Run another command of ours and return what it said as JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "simulations.cli", *words, "--json"],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def errors(self) -> str:
        """Return what it wrote to stderr."""
        return (self.folder / "stderr").read_text()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Return a fleet that is not up yet; nothing is left of it afterwards."""
    made = Up(tmp_path)
    yield made
    if made.process is not None:
        family = [] if made.process.poll() is not None else family_of(made.process.pid)
        made.process.kill()
        made.process.wait(10)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if made.process.stdout is not None:
            made.process.stdout.close()


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """Yield its events."""
    assert process.stdout is not None
    # What is not an event is an error, which the exit code and stderr tell.
    for line in process.stdout:
        if line.startswith('{"'):
            yield json.loads(line)


def test_a_fleet_comes_up_trains_and_leaves_the_folder_of_a_simulation(up: Up) -> None:
    process = up.start("--exit-when-done", "--json")
    family: set[int] = set()
    seen = []
    for event in events(process):
        seen.append(event)
        family |= set(family_of(process.pid))
    assert process.wait(60) == 0, up.errors()
    assert len(family) >= NODES + 6
    assert not [pid for pid in family if alive(pid)]
    names = [event["event"] for event in seen]
    assert [name for name in names if name == "round"] == ["round"] * 2
    assert names[-1] == "stopped"
    answered = [event["record"]["answered"] for event in seen if event["event"] == "round"]
    assert answered[-1] == NODES
    _check_run_folder(up)
    _check_devices(up, next(e["digest"] for e in seen if e["event"] == "adapter-in-use"))
    _check_modes(up.fleet)


def _check_run_folder(up: Up) -> None:
    """Require what ``fedslm simulate`` leaves, and that all of it verifies."""
    run = up.fleet / "runs" / "fleet"
    files = {path.name for path in run.iterdir()}
    wanted = "adapter audit.json audit.sig.json checkpoint.safetensors config.toml evaluation.json"
    wanted += " ledger.sqlite metrics.jsonl releases report.html run.json summary.json"
    assert set(wanted.split()) <= files
    assert not {"ledger.key", "order.json", "fleet.json", "underway.json"} & files
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["population"]) == ("completed", 2, NODES)
    assert summary["privacy"]["mode"] == "example"
    assert summary["privacy"]["noise_source"] == "os-entropy"
    assert 0 < summary["privacy"]["epsilon"] <= 8.0
    assert summary["loss_before"] > 0
    assert summary["loss_after"] > 0
    assert up.say("budget", "verify", str(run))["whole"] is True
    assert up.say("budget", "verify", str(up.fleet / "server" / "ledger.sqlite"))["whole"] is True
    up.say("audit", "verify", str(run))


def _check_devices(up: Up, digest: str) -> None:
    """Require that every device took part, spent, and verified the adapter."""
    server = ServerHome.open(up.fleet / "server")
    assert [v.digest for v in server_registry(server).versions() if v.state == "current"] == [
        digest
    ]
    with FleetDatabase(server.fleet_database) as database:
        assert len(database.nodes()) == NODES
    for number in range(1, NODES + 1):
        home = DeviceHome.open(up.fleet / "nodes" / f"node-{number}")
        key = home.config.adapter_key or ""
        store = AdapterStore(home.adapters, trusted_key=key, base_digest=None)
        assert store.memory().current == digest
        status = up.say("client", "status", "--home", str(home.path))
        assert status["work"]["answered"] == 2
        assert 0 < status["policy"]["budgets"][0]["spent"]["epsilon"] <= 12.0
    found = up.say("client", "infer", "The patient", "--home", str(home.path), "--max-tokens", "4")
    assert found["adapter"] == digest


def _check_modes(fleet: Path) -> None:
    """Require that nobody else may read anything but certificates."""
    public = {"ca.crt", "server.crt", "node.crt"}
    files = [path for path in fleet.rglob("*") if path.is_file() and path.name not in public]
    assert not [path for path in files if path.stat().st_mode & 0o077]
    assert (fleet / "operator-password").stat().st_mode & 0o777 == 0o600


def test_an_interrupted_fleet_leaves_no_process_and_goes_on(up: Up) -> None:
    process = up.start("--json", *UNAUDITED)
    family: list[int] = []
    for event in events(process):
        if event["event"] == "round":
            family = family_of(process.pid)
            process.send_signal(signal.SIGINT)
            break
    assert len(family) >= NODES + 6
    assert process.wait(40) == 130, up.errors()
    _require_gone(family)
    assert process.stdout is not None
    process.stdout.close()
    again = up.start("--exit-when-done", "--json", *UNAUDITED)
    names = [event["event"] for event in events(again)]
    assert again.wait(60) == 0, up.errors()
    assert names[0] == "taken-up"
    assert "enrolled" not in names
    # Nobody audited it, and devices would refuse it.
    assert "adapter-not-in-use" in names
    metrics = (up.fleet / "runs" / "fleet" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in metrics] == [1, 2]
    assert up.say("budget", "verify", str(up.fleet / "runs" / "fleet"))["whole"] is True


def test_a_killed_fleet_takes_all_of_its_processes_along(up: Up) -> None:
    process = up.start("--json")
    family: list[int] = []
    for event in events(process):
        if event["event"] == "nodes-started":
            family = family_of(process.pid)
            process.kill()
            break
    process.wait(10)
    _require_gone(family)


def _require_gone(family: list[int]) -> None:
    """Require that processes end within seconds."""
    end = time.monotonic() + 10
    while [pid for pid in family if alive(pid)]:
        assert time.monotonic() < end, [pid for pid in family if alive(pid)]
        time.sleep(0.1)


def test_a_folder_with_something_else_in_it_is_refused(up: Up) -> None:
    up.fleet.mkdir(mode=0o700)
    (up.fleet / "thesis.txt").write_text("mine")
    assert up.start("--exit-when-done").wait(60) != 0
    assert "Choose another --dir" in up.errors()
    assert [path.name for path in up.fleet.iterdir() if path.name != ".up.lock"] == ["thesis.txt"]
