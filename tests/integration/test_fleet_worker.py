"""The node's worker with the installed client: it trains, refuses, and charges the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from client.fleet.child import Child, WorkerLost
from client.fleet.limits import DEFAULT_LIMITS
from client.fleet.messages import Question, RunInfo
from client.fleet.records import decode, encode
from client.fleet.worker import from_flower, to_flower
from shared.wire import decode_update, encode_failure, encode_instruction
from tests.client.device import EXAMPLE
from tests.integration.device import Device, Round, adapter_size, code, make_device, make_round

pytestmark = pytest.mark.slow


@pytest.fixture
def child() -> Iterator[Child]:
    found = Child(limits=DEFAULT_LIMITS)
    yield found
    found.end()


def ask(child: Child, device: Device, asked: Round, *, seconds: float = 60.0) -> RecordDict:
    """Send a round through the worker and return its reply."""
    question = Question(
        message_id="a" * 64,
        run_id=1,
        source=1,
        kind="train",
        group=str(asked.instruction.server_round),
        created_at=time.time(),
        ttl=600.0,
    )
    run = RunInfo(
        run_id=1, series_id=0, bundle="", config={"scenario": asked.scenario, "plan": asked.plan}
    )
    end = time.monotonic() + seconds
    found: Any = child.ask(
        question,
        encode(from_flower(encode_instruction(asked.instruction))),
        node_id=17,
        node_config=device.node(),
        run=run,
        go_on=lambda: time.monotonic() < end,
    )
    # A refusal reaches the parent as a code, so that the owner's log can say so.
    if isinstance(found, str):
        return encode_failure(found)
    return to_flower(decode(found[0]))


def test_it_trains_under_the_devices_policy_and_stays_warm(tmp_path: Path, child: Child) -> None:
    device = make_device(tmp_path)
    asked = make_round(number=1)
    reply = ask(child, device, asked)
    assert code(reply) == ""
    update = decode_update(
        reply,
        server_round=1,
        config_digest=asked.instruction.config_digest,
        stage="noised",
        size=adapter_size(asked.scenario),
    )
    assert update.vector.any()
    charged = device.releases()
    assert charged > 0
    pid = child.pid
    started = time.monotonic()
    assert code(ask(child, device, make_round(number=2))) == ""
    warm = time.monotonic() - started
    assert child.pid == pid
    assert device.releases() > charged
    # The policy is read again at every message.
    make_device(tmp_path, example={**EXAMPLE, "min_noise_multiplier": 50.0})
    assert code(ask(child, device, make_round(number=3))) == "policy-refused"
    assert warm < 30


def test_work_that_is_killed_was_charged(tmp_path: Path, child: Child) -> None:
    device = make_device(tmp_path)
    ask(child, device, make_round(number=1))
    before = device.releases()
    started = time.monotonic()
    try:
        ask(child, device, make_round(number=2), seconds=0.0)
    except WorkerLost:
        assert child.pid is None
    # Killed or done: never less than before, and the ledger is whole.
    assert device.releases() >= before
    assert time.monotonic() - started < 30
    assert code(ask(child, device, make_round(number=3))) == ""
