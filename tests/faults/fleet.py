"""A fleet for tests of faults: a server, two real nodes, and light ones that do as they are told.

The server is ``fedslm server run``; clients 0 and 1 are ``fedslm client run``, each with its worker
that trains the embedded model; the others live in this process and answer, wait, vanish, answer
twice or late. Nothing is left of it afterwards.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.fleet.messages import Question
from client.home import DeviceHome
from client.nodelog import read_log
from server.fleetruns import FINAL, FleetRuns
from server.home import ServerHome
from server.prepared import read_setup
from server.processes import LEASH
from server.supervisor import read_status
from shared.configfile import resolve
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_history import StoredCharge
from simulations.benchmarks.lightnodes import Habit, Tally, light_nodes
from simulations.fleetprepare import start_run
from tests.client.device import CLIENT, write_policy
from tests.integration.device import demo_digest
from tests.integration.fleetnode import make_fleet_device
from tests.server.fleetkit import (
    family_of,
    kill,
    make_home,
    pid_of,
    process,
    supervisor_command,
    wait_until,
    wait_until_healthy,
)

REAL = 2
LIGHT = 11
TABLES: dict[str, dict[str, object]] = {
    "run": {"name": "faults", "rounds": 6, "seed": 5},
    "model": {"base": "demo"},
    "lora": {"r": 2},
    "data": {"path": "notes.jsonl", "text": "note", "max_length": 32, "partitioner": "iid"},
    "clients": {"population": 5, "local_steps": 1, "batch_size": 2, "learning_rate": 0.5},
    "server": {"deadline_seconds": 60.0, "quorum": 0.5},
    "privacy": {
        "mode": "client-central",
        "neighboring_relation": "add-or-remove-one",
        "noise_multiplier": 4.0,
        "delta": 1e-5,
        "clipping_norm": 0.5,
        "cap": 100.0,
    },
    "aggregation": {"policy": "ffa"},
    "evaluation": {"clients": 2},
    "audit": {"canaries": 0, "profile": "none"},
    "performance": {"threads": 1},
}


@dataclass
class Orders:
    """What the light nodes do: told by the test, asked in the nodes' threads.

    Attributes:
        holding: clients that keep a message until they are released.
        choose: what a client does otherwise.
        asked: run, group and client of each message that came.
    """

    holding: frozenset[int] = frozenset()
    choose: Callable[[int, Question], Habit] | None = None
    asked: list[tuple[int, str, int]] = field(default_factory=list)

    def __call__(self, client: int, question: Question) -> Habit:
        """Take a message."""
        self.asked.append((question.run_id, question.group, client))
        while client in self.holding and time.time() < question.expires + 2.0:
            time.sleep(0.02)
        return "answer" if self.choose is None else self.choose(client, question)

    def held(self, since: int) -> set[int]:
        """Return which clients got a message since a length of ``asked`` and hold it."""
        return {client for _, _, client in self.asked[since:]} & self.holding

    def release(self) -> None:
        """Let everybody answer, as ever."""
        self.holding, self.choose = frozenset(), None


@dataclass
class RealNode:
    """A device and its node: ``fedslm client run``."""

    server: ServerHome
    device: DeviceHome
    running: ExitStack = field(default_factory=ExitStack)
    process: subprocess.Popen[bytes] | None = None

    def start(self, *before: str, **variables: str) -> None:
        """Start the node; words go before its command, variables into its environment."""
        command = [sys.executable, "-m", "simulations.cli", "client", "run"]
        command += ["--home", str(self.device.path), "--json"]
        if variables:
            before = ("env", *(f"{key}={value}" for key, value in variables.items()), *before)
        folder = self.device.path.parent
        log = folder / f"{self.device.path.name}.out"
        started = process(self.server, leashed([*before, *command]), log=log, cwd=folder)
        self.process = self.running.enter_context(started)

    def stop(self) -> None:
        """Stop the node as its owner does, with all that it started."""
        self.running.close()
        self.process = None

    def kill(self) -> None:
        """Kill the node as a power cut does, with all that it started."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                kill(pid)
        self.stop()

    def pids(self) -> list[int]:
        """Return the processes of node and worker."""
        return [] if self.process is None else [self.process.pid, *family_of(self.process.pid)]

    def worker(self) -> int | None:
        """Return the worker's process."""
        return next((pid for pid in self.pids() if _is_worker(pid)), None)

    def signal(self, number: signal.Signals) -> None:
        """Signal node and worker."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def events(self) -> list[dict[str, Any]]:
        """Return what the node logged, oldest first."""
        return list(read_log(self.device.log))

    def count(self, event: str) -> int:
        """Return how often something happened."""
        return sum(found.get("event") == event for found in self.events())

    def status(self) -> Mapping[str, Any]:
        """Return the status file."""
        from client.fleet.status import read_status as read_node_status

        return read_node_status(self.device.path) or {}


class Fleet:
    """A server and its nodes.

    Args:
        folder: for everything.
        opened: where what must be closed goes.
        server: where the server's folder is made; it may be a file system of its own.
    """

    def __init__(self, folder: Path, opened: ExitStack, *, server: Path | None = None) -> None:
        self.home = make_home(server or folder, hosts=("localhost", ADDRESS))
        self.runs = FleetRuns(self.home)
        self.orders = Orders()
        self._folder = folder
        self._opened = opened
        self._server = opened.enter_context(ExitStack())
        self.supervisor: subprocess.Popen[bytes] | None = None
        self.nodes: list[RealNode] = []
        self.tally = Tally()

    def start_server(self) -> None:
        """Start the server and wait until it works."""
        self._server.close()
        command = leashed(supervisor_command(self.home))
        started = process(self.home, command, log=self._folder / "server.out")
        self.supervisor = self._server.enter_context(started)
        wait_until_healthy(self.home)

    def add_real(self, count: int) -> None:
        """Enroll and start real nodes."""
        for _ in range(count):
            name = f"clinic-{len(self.nodes)}"
            device = make_fleet_device(self.home, self._folder / name, name)
            write_policy(
                device.path,
                "client-central",
                base_models=[demo_digest()],
                max_rounds=1000,
                client=CLIENT | {"max_epsilon": 1000.0, "delta": 1e-4},
            )
            node = RealNode(self.home, device)
            self._opened.callback(node.stop)
            node.start()
            self.nodes.append(node)

    def add_light(self, count: int) -> None:
        """Enroll and start light nodes."""
        self.tally = self._opened.enter_context(
            light_nodes(self.home, count, habits=self.orders, poll_seconds=1.0)
        )

    def order(self, name: str, *changes: str) -> None:
        """Order a run; its budget is its own."""
        scope = f"data.path={name}.jsonl"
        resolved = resolve(TABLES, [f"run.name={name}", scope, *changes], source="test")
        start_run(self.home, resolved, name=name)

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """Return the metrics of a run."""
        return self.runs.rounds(name)

    def wait_round(self, name: str, number: int, *, seconds: float = 90.0) -> None:
        """Wait until a round is over."""

        def reached() -> bool:
            view = self.runs.view(name)
            assert view.state not in FINAL - {"completed"}, view.reason
            return view.round >= number

        wait_until(f"round {number} of {name}", reached, seconds=seconds)

    def finish(self, name: str, *, seconds: float = 120.0) -> list[dict[str, Any]]:
        """Wait until a run has ended as it should and return its rounds."""
        wait_until(
            f"the end of {name}", lambda: self.runs.view(name).state in FINAL, seconds=seconds
        )
        view = self.runs.view(name)
        assert view.state == "completed", view.reason
        return self.rounds(name)

    def pid(self, victim: str) -> int:
        """Return the process of a part of the server; of "serverapp" the one that runs now."""
        if victim == "supervisor":
            assert self.supervisor is not None
            return self.supervisor.pid
        if victim != "serverapp":
            return pid_of(self.home, victim)
        found: list[int] = []

        def there() -> bool:
            with suppress(OSError):
                found[:] = [p for p in family_of(self.pid("superexec")) if _is_server_app(p)]
            return bool(found)

        wait_until("a ServerApp", there, seconds=30)
        return found[0]

    def kill(self, victim: str) -> None:
        """Kill a part of the server at once; a supervisor is started again by hand."""
        kill(self.pid(victim))
        if victim == "supervisor":
            assert self.supervisor is not None
            self.supervisor.wait(10)
            self.start_server()

    def restart(self, service: str) -> None:
        """Kill a service and wait until the supervisor has started another."""
        before = self.pid(service)
        kill(before)
        wait_until(f"another {service}", lambda: self.pid(service) != before, seconds=20)
        wait_until_healthy(self.home)

    def charges(self, name: str) -> list[StoredCharge]:
        """Return what a run was charged, after verifying the whole ledger."""
        setup = read_setup(self.runs.folder(name))
        with Ledger(self.home.ledger, read_only=True) as ledger:
            report = ledger.verify()
            found = ledger.charges(setup.config.data.path)
        assert report.signatures > 0
        return [charge for charge in found if charge.run_id == setup.run_id]


ADDRESS = "10.231.7.1"


def leashed(command: list[str]) -> list[str]:
    """Return a command line whose process the kernel kills when this one ends, however it ends."""
    program = shutil.which(command[0])
    assert program is not None, command[0]
    return [sys.executable, "-S", "-E", str(LEASH), str(os.getpid()), program, *command[1:]]


def check_books(fleet: Fleet, name: str, rounds: int, *, lost: int) -> list[int]:
    """Hold metrics and ledger of a finished run against each other.

    Each round is in the metrics once. What was released was charged once and committed; at most
    ``lost`` rounds were begun and not finished: they were charged once, or killed before that.

    Returns:
        The lost rounds.
    """
    records = fleet.rounds(name)
    assert [record["round"] for record in records] == list(range(1, rounds + 1))
    found = [record["round"] for record in records if record["aborted"]]
    assert len(found) <= lost
    charges = fleet.charges(name)
    assert {charge.subjects for charge in charges} == {("population",)}
    counted = [charge.server_round for charge in charges if charge.state != "abandoned"]
    committed = [charge.server_round for charge in charges if charge.state == "committed"]
    assert len(counted) == len(set(counted))
    assert set(range(1, rounds + 1)) - set(found) <= set(counted)
    # The commit follows the release: a server that is killed between them leaves it out.
    assert set(committed) <= set(range(1, rounds + 1)) - set(found)
    assert len(committed) >= rounds - len(found) - lost
    # What the run says it spent is what the ledger counts.
    assert records[-1]["releases"] == len(counted)
    return found


@contextmanager
def fleet_of(folder: Path, *, real: int, light: int, server: Path | None = None) -> Iterator[Fleet]:
    """Run a fleet; clients 0 to ``real - 1`` are real."""
    with ExitStack() as opened:
        fleet = Fleet(folder, opened, server=server)
        fleet.start_server()
        fleet.add_real(real)
        fleet.add_light(light)
        yield fleet
        fleet.orders.release()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small file system; skips where that is not allowed."""
    import pytest

    folder.mkdir(exist_ok=True)
    program = shutil.which("mount")
    words = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "none", str(folder)]
    if program is None or subprocess.run([program, *words], check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a file system; returns the file to delete."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while stream.write(b"\0" * 65536):
            pass
    with suppress(OSError), filler.open("ab", buffering=0) as stream:
        while stream.write(b"\0"):
            pass
    return filler


def healthy(fleet: Fleet) -> bool:
    """Tell whether every process of the server does its work."""
    return bool(read_status(fleet.home)["state"] == "healthy")


class Watch:
    """Calls something once, as soon as a file is another one than before; within a millisecond."""

    def __init__(self, path: Path, then: Callable[[], None]) -> None:
        self._path = path
        self._then = then
        self._before = self._mark()
        self.done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _mark(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_size

    def _run(self) -> None:
        end = time.monotonic() + 120.0
        while self._mark() == self._before and time.monotonic() < end:
            time.sleep(0.0005)
        self._then()
        self.done.set()


def _is_server_app(pid: int) -> bool:
    return b"serverapp" in _command(pid)


def _is_worker(pid: int) -> bool:
    return b"client.fleet.worker" in _command(pid)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
