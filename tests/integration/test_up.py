"""``fedslm up``, as a person runs it: from nothing to a finished run, or to Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.adapterstore import AdapterStore
from client.app import make_client_app
from client.home import DeviceHome
from server.budget import RunBudget
from server.checkpoint import read_checkpoint
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from server.prepared import FolderObserver, read_setup
from server.registry.opening import server_registry
from server.strategy import FederatedRun
from shared.privacy.ledger import Ledger
from simulations.assemble import assemble_runtime
from simulations.engine import InProcessGrid
from simulations.updeal import RECORDS, DealtDataset
from tests.encoders import LABELS, save_corpus, save_encoder
from tests.server.fleetkit import ROOT, alive, family_of

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(900)]

# Each starts a worker with torch, which is most of what a test here costs.
NODES = 2
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

    def start(
        self, *words: str, small: Sequence[str] = SMALL, nodes: int = NODES
    ) -> subprocess.Popen[str]:
        """Start it."""
        settings = [word for change in small for word in ("--set", change.replace("'", '"'))]
        command = [sys.executable, "-m", "simulations.cli", "up", "--dir", str(self.fleet)]
        with (self.folder / "stderr").open("a") as errors:
            self.process = subprocess.Popen(
                [*command, "--nodes", str(nodes), "--rounds", "2", *settings, *words],
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
    asked = ("client", "infer", "The patient", "--home", str(home.path), "--max-tokens", "4")
    found = up.say(*asked)
    assert (found["adapter"], found["personal"]) == (digest, None)
    own = up.say("client", "personalise", "--home", str(home.path), "--steps", "1", "--keep")
    assert (own["adapter"], own["steps"], own["kept"]) == (digest, 1, True)
    assert own["loss_before"] > 0
    found = up.say(*asked, "--personal")
    assert (found["adapter"], found["personal"]["adapter"]) == (digest, digest)


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


LATE = (
    "buffer.size=2",
    "buffer.concurrency=3",
    "link.up='int8'",
    "link.down='delta'",
    "clients.schedule='cosine'",
    "privacy.noise_schedule='linear'",
    "privacy.noise_final=0.8",
    "audit.profile='none'",
)


def test_nobody_is_waited_for_charged_or_asked_twice_when_the_server_app_is_killed(up: Up) -> None:
    """Asynchronous rounds with codes and schedules; the ServerApp is killed after the first."""
    small = (*SMALL, *LATE)
    process = up.start("--exit-when-done", "--json", "--rounds", "4", small=small, nodes=3)
    killed: list[int] = []
    for event in events(process):
        if event["event"] == "round" and not killed:
            killed = [pid for pid in family_of(process.pid) if _is_server_app(pid)]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
    assert killed
    assert process.wait(60) == 0, up.errors()
    run = up.fleet / "runs" / "fleet"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["round"] for record in records] == [1, 2, 3, 4]
    aborted = [record["round"] for record in records if record["aborted"]]
    assert len(aborted) <= 1
    released = [record for record in records if not record["aborted"]]
    assert all(1 <= record["answered"] <= 2 for record in released)
    sizes = {record["bytes_up_per_client"] for record in released}
    size = read_setup(run).spec.size("B")
    # A byte a number, two for each block of 64, and what goes with a message.
    assert all(size < found < 1.2 * size + 1000 for found in sizes)
    assert up.say("budget", "verify", str(run))["whole"] is True
    with Ledger(run / "ledger.sqlite", read_only=True) as ledger:
        charges = ledger.charges(read_setup(run).config.data.path)
    charged = [(s, charge.server_round) for charge in charges for s in charge.subjects]
    assert len(set(charged)) == len(charged)
    for number in range(1, 4):
        home = str(up.fleet / "nodes" / f"node-{number}")
        work = up.say("client", "status", "--home", home)["work"]
        assert work["refused"] == work["failed"] == 0


def _is_server_app(pid: int) -> bool:
    """Tell whether a process is Flower's ServerApp."""
    with suppress(OSError):
        return b"serverapp" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


CLASSES = (
    "link.up='int8'",
    "link.down='fp16'",
    "clients.schedule='cosine'",
    "aggregation.policy='fedavg'",
    "run.rounds=2",
)


def test_classifiers_on_real_nodes_come_to_the_adapter_of_a_simulation(up: Up) -> None:
    """The same records, codes and rates, in one process: nothing random is secret in mode none."""
    save_encoder(up.folder / "encoder")
    save_corpus(up.folder / "intents.csv")
    scenario = up.folder / "intents.toml"
    scenario.write_text(
        '[run]\nname = "intents"\nrounds = 2\nseed = 3\n[model]\nbase = "encoder"\n[task]\n'
        f'kind = "classification"\nlabels = {json.dumps(list(LABELS))}\n[lora]\nr = 2\n'
        '[data]\npath = "intents.csv"\ntext = "text"\nlabel = "category"\nmax_length = 16\n'
        'partitioner = "iid"\nholdout = 0.25\n[clients]\nlocal_steps = 3\nbatch_size = 8\n'
        'learning_rate = 0.03\noptimizer = "adamw"\n[server]\ndeadline_seconds = 300.0\n'
        '[privacy]\nmode = "none"\n[audit]\n'
        'profile = "none"\n[performance]\nthreads = 1\n'
    )
    process = up.start("--exit-when-done", "--json", "--scenario", str(scenario), small=CLASSES)
    seen = list(events(process))
    assert process.wait(60) == 0, up.errors()
    assert [e["record"]["answered"] for e in seen if e["event"] == "round"] == [NODES] * 2
    run = up.fleet / "runs" / "intents"
    setup = read_setup(run)
    found = read_checkpoint(run, config_digest=setup.config.digest())
    assert found is not None
    files = tuple(up.fleet / "nodes" / f"node-{n}" / RECORDS for n in range(1, NODES + 1))
    dealt = DealtDataset(files=files, config=setup.config, facts={})
    runtime = assemble_runtime(setup.config, setup.plan, base_dir=up.folder, dealt=dealt).runtime
    again = replace(setup, folder=up.folder / "again")
    again.folder.mkdir()
    with Ledger(again.folder / "ledger.sqlite") as ledger:
        budget = RunBudget(ledger, plan=setup.plan, run_id=setup.run_id, scope="again")
        simulated = FederatedRun(again, budget=budget, observer=FolderObserver(again.folder))
        app = make_client_app(lambda _: runtime, simulated=True)
        simulated.train(simulated.connect(InProcessGrid(app, NODES)))
    assert np.abs(simulated.vector).max() > 0.01
    # Rounding to int8 may fall the other way where batches are cut otherwise.
    assert found.vector == pytest.approx(simulated.vector, abs=2e-3)


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
