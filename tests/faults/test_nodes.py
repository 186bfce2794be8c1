"""Real nodes that are killed, slow, asleep, doubled, wrong about the time, or out of disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from client.home import DeviceHome
from tests.faults.fleet import Fleet, RealNode, check_books
from tests.server.fleetkit import kill, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(240)]

# Of the device's clock, for every process that it is loaded into: time(), gettimeofday() and
# clock_gettime(), which Python and OpenSSL ask.
CLOCK = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <unistd.h>
static long off(void) { char *s = getenv("CLOCK_OFF"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
  int r = syscall(SYS_clock_gettime, id, t);
  if (r == 0 && id == CLOCK_REALTIME) t->tv_sec += off();
  return r;
}
time_t time(time_t *p) {
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
  if (p) *p = t.tv_sec;
  return t.tv_sec;
}
int gettimeofday(struct timeval *v, void *z) {
  struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
  v->tv_sec = t.tv_sec; v->tv_usec = t.tv_nsec / 1000; return 0;
}
"""
DAY = 86_400


@pytest.fixture
def node(fleet: Fleet) -> RealNode:
    """The node of client 1; it runs and has joined."""
    found = fleet.nodes[1]
    if found.process is None:
        found.start()
    wait_until("joining", lambda: found.status().get("state") in {"idle", "working"}, seconds=90)
    return found


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that sets a process's clock wrong."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a wrong clock needs a C compiler")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    library = folder / "clock.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "clock.c")]
    subprocess.run(command, check=True)
    return library


def working(node: RealNode) -> bool:
    """Tell whether a node's worker is at a message."""
    return node.status().get("state") == "working" and node.worker() is not None


def warm(fleet: Fleet, name: str, node: RealNode, *changes: str) -> None:
    """Order a run and wait until the node has answered once, its model loaded."""
    before = node.count("answered")
    fleet.order(name, "clients.population=4", *changes)
    wait_until("an answer", lambda: node.count("answered") > before, seconds=90)


def test_a_node_killed_while_it_trains_is_a_dropout_and_comes_back(
    fleet: Fleet, node: RealNode
) -> None:
    """The server takes it for online until two heartbeats are missing; it joins after that."""
    warm(fleet, "node-killed", node, "run.rounds=40", "server.deadline_seconds=10")
    wait_until("work", lambda: working(node), seconds=60)
    number = fleet.runs.view("node-killed").round + 1
    node.kill()
    fleet.wait_round("node-killed", number + 1)
    assert min(r["answered"] for r in fleet.rounds("node-killed")[number - 1 :]) == 3
    before = node.count("answered")
    node.start()
    wait_until("an answer", lambda: node.count("answered") > before, seconds=90)
    fleet.runs.want("node-killed", "stopped")


def test_a_node_slower_than_the_deadline_costs_its_answer_only(
    fleet: Fleet, node: RealNode
) -> None:
    warm(fleet, "node-slow", node, "run.rounds=40", "server.deadline_seconds=12")
    worker, lost = node.worker(), node.count("late")
    assert worker is not None
    # Frozen, as by a machine that swaps; the node itself watches on.
    os.kill(worker, signal.SIGSTOP)
    number = fleet.runs.view("node-slow").round
    wait_until("the end of its work", lambda: node.count("late") > lost, seconds=60)
    fleet.wait_round("node-slow", number + 2)
    without = [r for r in fleet.rounds("node-slow")[number:] if r["answered"] == 3]
    assert without
    assert without[0]["seconds"] >= 11
    assert node.worker() != worker
    before = node.count("answered")
    wait_until("an answer", lambda: node.count("answered") > before, seconds=90)
    fleet.runs.want("node-slow", "stopped")


def test_a_node_asleep_for_rounds_takes_part_again(fleet: Fleet, node: RealNode) -> None:
    warm(fleet, "node-asleep", node, "run.rounds=400", "server.deadline_seconds=8")
    node.signal(signal.SIGSTOP)
    number = fleet.runs.view("node-asleep").round
    # Until two heartbeats are missing it is drawn and waited for, then not any more.
    wait_until(
        "rounds without it",
        lambda: len([r for r in fleet.rounds("node-asleep")[number:] if r["answered"] == 3]) >= 4,
        seconds=100,
    )
    before = node.count("answered")
    node.signal(signal.SIGCONT)
    wait_until("an answer", lambda: node.count("answered") > before, seconds=60)
    wait_until(
        "a round with it", lambda: fleet.rounds("node-asleep")[-1]["answered"] == 4, seconds=60
    )
    fleet.runs.want("node-asleep", "stopped")


def test_a_second_node_with_the_same_key_is_kept_out_until_the_first_leaves(
    fleet: Fleet, node: RealNode, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(node.device.path, copy)
    twin = RealNode(fleet.home, DeviceHome.open(copy))
    twin.start()
    try:
        wait_until("a refusal", lambda: twin.status().get("state") == "denied", seconds=60)
        warm(fleet, "twins", node, "run.rounds=2")
        records = fleet.finish("twins")
        assert records[-1]["answered"] == 4
        check_books(fleet, "twins", 2, lost=0)
        assert twin.count("message") == node.count("message") - 2 or twin.worker() is None
        assert node.status()["state"] in {"idle", "working"}
        node.stop()
        wait_until("its turn", lambda: twin.status().get("state") == "idle", seconds=60)
    finally:
        twin.stop()
    node.start()


@pytest.mark.parametrize("days", [3, -3], ids=["ahead", "behind"])
def test_a_clock_wrong_by_days(fleet: Fleet, node: RealNode, clock: Path, days: int) -> None:
    """The node takes the server's time, and certificates are dated back."""
    node.stop()
    node.start(LD_PRELOAD=str(clock), CLOCK_OFF=str(days * DAY))
    name = "clock-ahead" if days > 0 else "clock-behind"
    try:
        warm(fleet, name, node, "run.rounds=2")
        records = fleet.finish(name)
        assert records[-1]["answered"] == 4
        assert node.status()["clock_offset"] == pytest.approx(-days * DAY, abs=5)
    finally:
        node.stop()
        node.start()


def test_a_clock_behind_the_certificates_trusts_nobody(
    fleet: Fleet, node: RealNode, clock: Path
) -> None:
    node.stop()
    node.start(LD_PRELOAD=str(clock), CLOCK_OFF=str(-60 * DAY))
    try:
        wait_until("doubt", lambda: node.status().get("state") == "away", seconds=60)
        assert node.status()["error"]["code"] == "certificate-invalid"
        assert "not yet valid" in node.status()["error"]["message"]
    finally:
        node.stop()
        node.start()


def test_a_worker_that_is_killed_costs_its_answer_only(fleet: Fleet, node: RealNode) -> None:
    """As the system does when memory is short."""
    warm(fleet, "no-memory", node, "run.rounds=40")
    worker, lost = node.worker(), node.count("worker-lost")
    assert worker is not None
    # A worker that stands still cannot answer before it is killed.
    os.kill(worker, signal.SIGSTOP)
    wait_until("work", lambda: working(node), seconds=60)
    # Until it was handed the message: one that dies idle costs nothing, and is not spoken of.
    time.sleep(3.0)
    kill(worker)
    wait_until("notice", lambda: node.count("worker-lost") > lost, seconds=15)
    before = node.count("answered")
    wait_until("an answer", lambda: node.count("answered") > before, seconds=90)
    assert all(record["answered"] >= 3 for record in fleet.rounds("no-memory"))
    fleet.runs.want("no-memory", "stopped")
