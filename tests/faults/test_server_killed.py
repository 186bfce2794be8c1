"""Parts of the server killed at points inside a round: no round is lost or counted twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.checkpoint import NAME as CHECKPOINT
from server.fleetapp import LOG
from tests.faults.fleet import Fleet, Watch, check_books
from tests.server.fleetkit import kill, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(240)]

ROUNDS = 12
LIGHTS = frozenset({2, 3, 4})


@pytest.mark.parametrize("victim", ["serverapp", "superlink", "supervisor"])
def test_killed_at_four_points_of_a_round(fleet: Fleet, victim: str) -> None:
    """Once it is charged, while clients train, while replies arrive, and once it is released."""
    name = f"killed-{victim}"
    fleet.order(name, f"run.rounds={ROUNDS}", "server.deadline_seconds=20")
    folder = fleet.runs.folder(name)
    fleet.wait_round(name, 1)
    # The log grows when a round was charged and before anything of it is sent.
    at_once(fleet, victim, folder / LOG)
    fleet.wait_round(name, 2)
    while_clients_train(fleet, victim)
    fleet.wait_round(name, 3)
    while_replies_arrive(fleet, victim)
    fleet.wait_round(name, 4)
    at_once(fleet, victim, folder / CHECKPOINT)
    fleet.finish(name)
    # One round for each kill, at most.
    check_books(fleet, name, ROUNDS, lost=4)


def at_once(fleet: Fleet, victim: str, path: Path) -> None:
    """Kill as soon as a file changes."""
    pid = fleet.pid(victim)
    watch = Watch(path, lambda: kill(pid))
    assert watch.done.wait(60)
    if victim == "supervisor":
        assert fleet.supervisor is not None
        fleet.supervisor.wait(10)
        fleet.start_server()


def while_clients_train(fleet: Fleet, victim: str) -> None:
    """Kill when three clients of a round have their message and none of them has answered."""
    since = len(fleet.orders.asked)
    fleet.orders.holding = LIGHTS
    wait_until("work", lambda: fleet.orders.held(since) == LIGHTS, seconds=60)
    fleet.kill(victim)
    fleet.orders.release()


def while_replies_arrive(fleet: Fleet, victim: str) -> None:
    """Kill when one light client has answered and two have not."""
    since, answered = len(fleet.orders.asked), fleet.tally.counts["answered"]
    fleet.orders.holding = waiting = LIGHTS - {2}
    wait_until(
        "an answer",
        lambda: fleet.orders.held(since) == waiting and fleet.tally.counts["answered"] > answered,
        seconds=60,
    )
    fleet.kill(victim)
    fleet.orders.release()
