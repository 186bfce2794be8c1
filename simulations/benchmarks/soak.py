"""Fifty nodes and two hundred rounds on one machine: does the server's memory stay flat?

A whole server as ``fedslm server run`` starts it, on free ports of this machine, with a run of mode
``client-central``; the nodes are light (:mod:`simulations.benchmarks.lightnodes`), so that the
processes of the server are what is measured. Linux only.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.errors import UsageError
from simulations.benchmarks.protocol import BenchResult, Check, Scalar

if TYPE_CHECKING:
    from server.home import ServerHome

SUMMARY = "Fifty nodes, two hundred rounds: the server's memory over time, and its ledger after."

GROWTH_SHARE: Final = 0.05
_SERVER_APP: Final = "serverapp"
_START_SECONDS: Final = 120.0
_ROUND_SECONDS: Final = 60.0
_TICK_SECONDS: Final = 0.2
_MB: Final = 1e6
_PARTS: Final = ("superlink", "superexec", "front", "runs", "control", "dashboard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of a soak.

    Attributes:
        nodes: light nodes, all of them connected and asking for work all the time.
        cohort: how many of them a round chooses on average.
        rounds: of the run.
        settle: rounds after which memory should be what it is.
        deadline: seconds that a round waits at most.
        poll_seconds: of a node, between two questions for work.
    """

    nodes: int
    cohort: float
    rounds: int
    settle: int
    deadline: float
    poll_seconds: float


FULL: Final = Size(nodes=50, cohort=10.0, rounds=200, settle=50, deadline=60.0, poll_seconds=2.0)
QUICK: Final = Size(nodes=6, cohort=3.0, rounds=8, settle=4, deadline=30.0, poll_seconds=0.5)

Samples = dict[str, list[tuple[int, float]]]


def run(*, quick: bool) -> BenchResult:
    """Start a server and its nodes, watch the memory of its processes, check the ledger.

    Raises:
        UsageError: on a system other than Linux, or if the server does not start or stops working.
    """
    if sys.platform != "linux":
        msg = "soak reads Linux's process table."
        raise UsageError(msg, hint="Run it on a Linux machine.")
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as name:
        return _soak(Path(name), size, quick=quick)


def _soak(folder: Path, size: Size, *, quick: bool) -> BenchResult:
    """Run the soak in a folder."""
    from shared.configfile import resolve
    from simulations.benchmarks.lightnodes import light_nodes
    from simulations.fleetprepare import start_run

    home = _home(folder)
    samples: Samples = {}
    with _server(home) as supervisor:
        _wait(home, supervisor)
        with light_nodes(home, size.nodes, poll_seconds=size.poll_seconds) as tally:
            start_run(home, resolve(_scenario(size), source="soak"), name="soak")
            started = time.monotonic()
            _watch(home, size, samples, supervisor)
            seconds = time.monotonic() - started
    records = _records(home)
    verified = _ledger_entries(home)
    rows = [_row(part, seen, size) for part, seen in sorted(samples.items())]
    answers = [int(record["answered"] or 0) for record in records]
    durations = [float(record["seconds"] or 0.0) for record in records]
    grown = max((float(row["growth"] or 0.0) for row in rows), default=float("nan"))
    return BenchResult(
        name="soak",
        parameters={
            "nodes": size.nodes,
            "cohort": size.cohort,
            "rounds": size.rounds,
            "answered_mean": round(statistics.mean(answers), 2),
            "round_seconds_median": round(statistics.median(durations), 2),
            "run_seconds": round(seconds, 1),
            "ledger_entries_verified": verified,
            "errors_of_nodes": sum(tally.errors.values()),
            "load_after": round(os.getloadavg()[0], 1),
            "quick": quick,
        },
        rows=tuple(rows),
        checks=(
            Check(
                name="growth of any process after settling",
                measured=grown,
                limit=GROWTH_SHARE,
                unit="share",
            ),
            Check(
                name="rounds missing or counted twice",
                measured=float(abs(len({r["round"] for r in records}) - size.rounds))
                + float(len(records) - len({r["round"] for r in records})),
                limit=0.0,
                unit="rounds",
            ),
        ),
    )


def _scenario(size: Size) -> dict[str, dict[str, object]]:
    """Return a scenario whose rounds are as cheap as they can be."""
    return {
        "run": {"name": "soak", "rounds": size.rounds, "seed": 5},
        "model": {"base": "demo"},
        "lora": {"r": 2},
        "data": {"path": "notes.jsonl", "text": "note", "max_length": 32, "partitioner": "iid"},
        "clients": {
            "population": size.nodes,
            "cohort": size.cohort,
            "local_steps": 1,
            "batch_size": 2,
        },
        "server": {"deadline_seconds": size.deadline, "quorum": 0.3},
        "privacy": {
            "mode": "client-central",
            "neighboring_relation": "add-or-remove-one",
            "noise_multiplier": 4.0,
            "delta": 1e-4,
            "clipping_norm": 0.5,
        },
        "aggregation": {"policy": "ffa"},
        "audit": {"canaries": 0, "profile": "none", "releases": False},
    }


def _home(folder: Path) -> ServerHome:
    """Make a server's folder on ports that are free now."""
    from server.home import ServerConfig, ServerHome

    names = ("fleet_port", "control_port", "dashboard_port", "superlink_port")
    held = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: one.getsockname()[1] for name, one in zip(names, held, strict=True)}
    for one in held:
        one.close()
    return ServerHome.create(
        folder / "server", ServerConfig.model_validate({"name": "soak", **ports})
    )


@contextmanager
def _server(home: ServerHome) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``fedslm server run``; it stops all that it started, and the kernel does if it cannot."""
    from server.superlink import environment

    root = str(Path(__file__).resolve().parents[2])
    variables = os.environ | environment(home) | {"PYTHONPATH": root}
    command = [sys.executable, "-m", "simulations.cli", "server", "run", str(home.path)]
    with (home.logs / "soak.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program, no shell
            command, env=variables, cwd=home.path, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(home: ServerHome, supervisor: subprocess.Popen[bytes]) -> None:
    """Wait until every process of the server does its work."""
    from server.supervisor import read_status

    _until(lambda: read_status(home)["state"] == "healthy", supervisor, _START_SECONDS, "start")


def _watch(
    home: ServerHome, size: Size, samples: Samples, supervisor: subprocess.Popen[bytes]
) -> None:
    """Note memory after each round until the run is over."""
    from server.fleetruns import FINAL, FleetRuns

    runs = FleetRuns(home)
    done = -1
    while runs.progress("soak").state not in FINAL:
        reached = done

        def onward(reached: int = reached) -> bool:
            return len(_records(home)) > reached or runs.progress("soak").state in FINAL

        _until(onward, supervisor, _START_SECONDS + _ROUND_SECONDS + size.deadline, "go on")
        done = len(_records(home))
        for part, pid in _processes(home):
            with suppress(OSError):
                samples.setdefault(part, []).append((done, _resident(pid)))
        if done >= size.rounds:
            _until(lambda: runs.progress("soak").state in FINAL, supervisor, _START_SECONDS, "end")
    state = runs.view("soak")
    if state.state != "completed":
        msg = f"The run ended as {state.state}: {state.reason}"
        raise UsageError(msg, hint="See its server.log.")


def _until(
    done: Callable[[], bool], supervisor: subprocess.Popen[bytes], seconds: float, what: str
) -> None:
    """Wait for something that must happen.

    Raises:
        UsageError: if it does not.
    """
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end or supervisor.poll() is not None:
            msg = f"The server did not {what} within {seconds:.0f} s."
            raise UsageError(msg, hint="Its logs say more.")
        time.sleep(_TICK_SECONDS)


def _processes(home: ServerHome) -> Iterator[tuple[str, int]]:
    """Yield name and number of the server's processes, and of the ServerApp."""
    executor = 0
    for name in _PARTS:
        with suppress(OSError, ValueError):
            pid = int((home.run / f"{name}.pid").read_text(encoding="ascii"))
            executor = pid if name == "superexec" else executor
            yield name, pid
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text(encoding="ascii").rpartition(")")[2].split()[1])
            if parent == executor and executor:
                yield _SERVER_APP, int(path.parent.name)


def _resident(pid: int) -> float:
    """Return the resident memory of a process, in MB of 1e6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def _records(home: ServerHome) -> list[Mapping[str, Scalar]]:
    """Return the metrics of the rounds so far."""
    from server.fleetruns import FleetRuns

    return list(FleetRuns(home).rounds("soak"))


def _row(part: str, seen: Sequence[tuple[int, float]], size: Size) -> dict[str, Scalar]:
    """Return how the memory of a process went."""
    settled = [mb for done, mb in seen if size.settle <= done]
    half = max(1, len(settled) // 4)
    early = statistics.median(settled[:half]) if settled else float("nan")
    late = statistics.median(settled[-half:]) if settled else float("nan")
    return {
        "process": part,
        "first_mb": round(seen[0][1], 1),
        "settled_mb": round(early, 1),
        "last_mb": round(late, 1),
        "peak_mb": round(max(mb for _, mb in seen), 1),
        "growth": round(late / early - 1.0, 4),
        "samples": len(seen),
    }


def _ledger_entries(home: ServerHome) -> int:
    """Verify the server's ledger; returns how many entries it has.

    Raises:
        LedgerTampered: if it is not whole.
    """
    from shared.privacy.ledger import Ledger
    from shared.privacy.ledger_signing import LedgerSigner

    with Ledger(home.ledger, signer=LedgerSigner.load_or_create(home.ledger_key)) as ledger:
        return ledger.verify().entries
