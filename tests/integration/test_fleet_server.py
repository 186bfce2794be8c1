"""A whole server with real nodes: it runs, survives what is killed, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.home import DeviceHome
from server.fleetdb import FleetDatabase
from server.fleetruns import FleetRuns
from server.home import ServerHome
from server.prepared import read_metrics
from server.registry import AdapterRegistry
from server.superlinkclient import SuperLinkClient
from server.supervisor import is_running, read_status
from shared.configfile import resolve
from shared.crypto import SigningKey
from simulations.fleetprepare import start_run
from tests.integration.fleetnode import TABLES, make_fleet_device, node_command
from tests.server.fleetkit import (
    alive,
    family_of,
    kill,
    make_home,
    pid_of,
    process,
    server_command,
    supervisor_command,
    wait_until,
    wait_until_healthy,
)

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(420)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path)


def order(home: ServerHome, name: str, *changes: str) -> FleetRuns:
    start_run(home, resolve(TABLES, changes, source="test"), name=name)
    return FleetRuns(home)


def start_nodes(stack: ExitStack, home: ServerHome, folder: Path, count: int) -> list[DeviceHome]:
    """Enroll and start nodes; each writes its events into a log of its own."""
    devices = [make_fleet_device(home, folder / f"node-{n}", f"clinic-{n}") for n in range(count)]
    for device in devices:
        log = device.path / "node.log"
        stack.enter_context(process(home, node_command(device), log=log, cwd=device.path))
    return devices


def test_a_server_starts_stops_and_leaves_nothing(stack: ExitStack, home: ServerHome) -> None:
    running = stack.enter_context(process(home, supervisor_command(home)))
    wait_until_healthy(home)
    status = json.loads(home.status.read_text())
    assert {"superlink", "superexec", "front", "runs"} <= set(status["processes"])
    assert server_command("status", "--dir", str(home.path), "--json") == 0
    family = family_of(running.pid)
    assert len(family) >= 4
    second = stack.enter_context(process(home, supervisor_command(home)))
    assert second.wait(20) != 0
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0
    assert not [pid for pid in family if alive(pid)]
    assert read_status(home)["state"] == "stopped"
    modes = {p: p.stat().st_mode & 0o077 for p in home.path.rglob("*") if p.is_file()}
    # The last is what this test itself lets the supervisor write to.
    public = {home.ca_certificate, home.server_certificate, home.config_path}
    public.add(home.logs / "test.log")
    assert {p for p, mode in modes.items() if mode} <= public


def test_a_killed_supervisor_leaves_no_orphan_and_can_start_again(
    stack: ExitStack, home: ServerHome
) -> None:
    running = stack.enter_context(process(home, supervisor_command(home)))
    wait_until_healthy(home)
    family = family_of(running.pid)
    kill(running.pid)
    running.wait(5)
    wait_until("an end", lambda: not [p for p in family if alive(p)], seconds=5)
    assert not is_running(home)
    stack.enter_context(process(home, supervisor_command(home)))
    wait_until_healthy(home)


def test_a_run_goes_on_when_the_superlink_and_its_app_are_killed(
    stack: ExitStack, home: ServerHome, tmp_path: Path
) -> None:
    """After round 1 the SuperLink is killed, after round 2 all that runs ServerApps."""
    stack.enter_context(process(home, supervisor_command(home)))
    wait_until_healthy(home)
    start_nodes(stack, home, tmp_path, 2)
    runs = order(home, "one", "run.rounds=4")
    wait_until("round 1", lambda: runs.view("one").round >= 1, seconds=150)
    superlink = pid_of(home, "superlink")
    kill(superlink)
    wait_until("a new SuperLink", lambda: pid_of(home, "superlink") != superlink, seconds=15)
    wait_until("round 2", lambda: runs.view("one").round >= 2, seconds=90)
    executor = pid_of(home, "superexec")
    kill(executor)
    wait_until("the end", lambda: runs.view("one").state == "completed", seconds=150)
    records = read_metrics(runs.folder("one"))
    assert [record["round"] for record in records] == [1, 2, 3, 4]
    # A kill in the middle of a round costs that round; nobody is asked it again.
    assert {record["answered"] for record in records if not record["aborted"]} == {2}
    assert sum(bool(record["aborted"]) for record in records) <= 2
    signer = SigningKey.load_or_create(home.adapter_key)
    [version] = AdapterRegistry(home.adapters, signer=signer).versions()
    assert version.digest == runs.view("one").adapter
    assert read_status(home)["processes"]["superlink"]["restarts"] >= 1


def test_nodes_come_and_go_between_rounds_and_the_revoked_stay_out(
    stack: ExitStack, home: ServerHome, tmp_path: Path
) -> None:
    """Half of two is enough: the run starts with one node; the other is revoked, then replaced."""
    stack.enter_context(process(home, supervisor_command(home)))
    wait_until_healthy(home)
    start_nodes(stack, home, tmp_path, 1)
    runs = order(home, "two", "run.rounds=500", "server.quorum=0.5")
    wait_until("a round of one", lambda: _answered(runs, 1), seconds=150)
    late = make_fleet_device(home, tmp_path / "late", "clinic-late")
    log = late.path / "node.log"
    stack.enter_context(process(home, node_command(late), log=log, cwd=late.path))
    wait_until("a round of two", lambda: _answered(runs, 2), seconds=90)
    with FleetDatabase(home.fleet_database) as database:
        entry = database.revoke("clinic-late", "lost")
    assert entry is not None
    wait_until("a round of one again", lambda: _answered(runs, 1), seconds=90)
    with SuperLinkClient.of(home) as client:
        gone = entry.public_key
        wait_until(
            "its removal", lambda: gone not in {n.public_key for n in client.nodes()}, seconds=10
        )
    assert server_command("stop-run", "two", "--dir", str(home.path), "--json") == 0
    wait_until("a stop", lambda: runs.view("two").state == "stopped", seconds=15)


def _answered(runs: FleetRuns, count: int) -> bool:
    """Tell whether so many answered the last round."""
    records = runs.rounds("two")
    return bool(records) and records[-1]["answered"] == count
