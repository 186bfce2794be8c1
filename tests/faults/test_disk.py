"""Disks that are full: the device's, and the server's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet, RealNode, check_books, fill, fleet_of, small_disk
from tests.server.fleetkit import wait_until, wait_until_healthy

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet whose server, and nothing else, is on a disk of 64 MB; one real node."""
    folder = tmp_path_factory.mktemp("cramped")
    with (
        small_disk(folder / "disk", 64) as disk,
        fleet_of(folder, real=1, light=2, server=disk) as fleet,
    ):
        yield fleet


def test_a_full_disk_of_the_server_stops_a_run_and_loses_nothing(cramped: Fleet) -> None:
    fleet = cramped
    fleet.order("full", "run.rounds=12", "clients.population=3", "server.deadline_seconds=20")
    fleet.wait_round("full", 2)
    filler = fill(fleet.home.path.parent)
    checkpoint = (fleet.runs.folder("full") / "checkpoint.safetensors").stat().st_mtime_ns

    def stuck() -> bool:
        name = fleet.runs.folder("full") / "fleet.json"
        return json.loads(name.read_text())["state"] != "running" or nothing_moves(
            fleet, checkpoint
        )

    wait_until("trouble", stuck, seconds=60)
    assert fleet.runs.view("full").round < 12
    filler.unlink()
    wait_until_healthy(fleet.home, seconds=120)
    fleet.finish("full", seconds=180)
    check_books(fleet, "full", 12, lost=2)


def refused(node: RealNode) -> bool:
    """Tell whether the client said that it cannot write its ledger."""
    return any("[out-of-disk]" in str(e.get("text")) for e in node.events())


def nothing_moves(fleet: Fleet, checkpoint: int) -> bool:
    """Tell whether no round has ended for ten seconds."""
    path = fleet.runs.folder("full") / "checkpoint.safetensors"
    before = path.stat().st_mtime_ns
    time.sleep(10)
    return before == path.stat().st_mtime_ns and before >= checkpoint


def test_a_full_disk_of_the_device_stops_its_training(cramped: Fleet, tmp_path: Path) -> None:
    """What cannot be charged is not trained; with space again the node answers again."""
    fleet = cramped
    node = fleet.nodes[0]
    node.stop()
    state = node.device.state
    with small_disk(tmp_path / "state", 2) as disk:
        if state.exists():
            state.rename(state.with_name("state-before"))
        state.symlink_to(disk)
        filler = fill(disk)
        node.start()
        fleet.order("no-space", "run.rounds=200", "clients.population=3", "server.quorum=0.5")
        wait_until("a refusal", lambda: refused(node), seconds=120)
        number = fleet.runs.view("no-space").round
        fleet.wait_round("no-space", number + 2)
        assert {record["answered"] for record in fleet.rounds("no-space")} == {2}
        filler.unlink()
        wait_until("an answer", lambda: fleet.rounds("no-space")[-1]["answered"] == 3, seconds=90)
        fleet.runs.want("no-space", "stopped")
        node.stop()
        state.unlink()
