"""A device without torch whose worker is killed in the middle of its steps spends once.

What a round costs is on the disk before the first record is read, so that a device that comes back
either has answered or has paid for nothing more than the round that it was killed in.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.app import RecordDict

from client.fleet.child import Child, WorkerLost
from client.fleet.limits import DEFAULT_LIMITS
from client.state import DeviceState
from shared.config import RunConfig
from tests.client.device import EXAMPLE
from tests.integration.device import Device, code, make_device, make_round, vector_of
from tests.integration.edgestep import edge_scenario, on_the_edge
from tests.integration.test_fleet_worker import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

STEPS = 4000
PATIENCE = 240.0


def long_round() -> RunConfig:
    """Return a scenario of one round of so many steps that a kill falls among them."""
    config = edge_scenario("example", noise_multiplier=200.0)
    changes = {
        "clients": config.clients.model_copy(update={"local_steps": STEPS}),
        "run": config.run.model_copy(update={"rounds": 1}),
    }
    return config.model_copy(update=changes)


@pytest.fixture
def child() -> Iterator[Child]:
    found = Child(limits=DEFAULT_LIMITS)
    yield found
    found.end()


def spent(device: Device) -> tuple[float, float]:
    """Return releases and epsilon by the device's own ledger, which is whole."""
    with DeviceState(device.state) as state:
        state.verify()
        [found] = state.spent()
    return found.releases, found.epsilon


def kill_while_it_trains(child: Child, device: Device) -> None:
    """Kill the worker once the round is charged; nothing is answered."""
    replies: list[RecordDict] = []

    def asking() -> None:
        with suppress(WorkerLost):
            replies.append(ask(child, device, make_round(config=long_round()), seconds=PATIENCE))

    thread = threading.Thread(target=asking)
    thread.start()
    end = time.monotonic() + PATIENCE
    while device.releases() == 0 and time.monotonic() < end:
        time.sleep(0.02)
    worker = child.pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    thread.join(PATIENCE)
    assert replies == []


def test_a_round_is_paid_for_once_and_never_answered_twice(tmp_path: Path, child: Child) -> None:
    device = on_the_edge(make_device(tmp_path))
    kill_while_it_trains(child, device)
    releases, epsilon = spent(device)
    assert releases == STEPS
    # It comes back: the round that it paid for is not asked of the text again.
    again = ask(child, device, make_round(config=long_round()), seconds=PATIENCE)
    assert code(again) == "policy-refused"
    assert spent(device) == (releases, epsilon)
    # The killed round counts: another like it would fit alone, and does not fit beside it.
    tight = {**EXAMPLE, "max_epsilon": 1.2 * epsilon}
    device = on_the_edge(make_device(tmp_path, example=tight))
    other = make_round(config=long_round(), run="next")
    assert code(ask(child, device, other, seconds=PATIENCE)) == "budget-exhausted"
    assert spent(device) == (releases, epsilon)
    # A small one does.
    child.end()
    small = make_round(config=edge_scenario("example", noise_multiplier=200.0), run="small")
    reply = ask(child, device, small, seconds=PATIENCE)
    assert code(reply) == ""
    assert vector_of(reply).any()
    assert spent(device)[0] == STEPS + 2
