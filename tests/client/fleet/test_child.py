"""The worker as a process: the installed client, and workers that misbehave."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.fleet.child import COMMAND, Child, WorkerLost
from client.fleet.limits import DEFAULT_LIMITS
from client.fleet.messages import Question, RunInfo
from client.fleet.objects import Tree
from client.fleet.records import Record, decode, encode
from client.fleet.worker import to_flower
from shared.wire import decode_introduction

RUN = RunInfo(run_id=5, series_id=0, bundle="", config={"scenario": "x", "raw": b"\0"})
EMPTY = encode(Record())
# A worker that reads its question and then does what the test wants.
READS = (
    "import sys,time,os;from client.fleet.frames import *;"
    "read_frame(sys.stdin.buffer);out=sys.stdout.buffer;"
)


def question(kind: str = "query") -> Question:
    return Question(
        message_id="a" * 64,
        run_id=5,
        source=1,
        kind=kind,
        group="1",
        created_at=time.time(),
        ttl=600.0,
    )


@contextmanager
def child(*command: str) -> Iterator[Child]:
    found = Child(command=command or COMMAND, limits=DEFAULT_LIMITS)
    try:
        yield found
    finally:
        found.end()


def ask(worker: Child, kind: str = "query", *, seconds: float = 30.0) -> tuple[Tree, float] | str:
    end = time.monotonic() + seconds
    return worker.ask(
        question(kind),
        EMPTY,
        node_id=17,
        node_config={"partition-id": 3},
        run=RUN,
        go_on=lambda: time.monotonic() < end,
    )


@pytest.mark.slow
def test_the_installed_client_answers_and_stays() -> None:
    with child() as worker:
        assert worker.pid is None
        found = ask(worker)
        assert not isinstance(found, str)
        tree, seconds = found
        assert decode_introduction(to_flower(decode(tree))).client == 3
        assert seconds < 30
        pid = worker.pid
        # The content is no instruction: the client says so, and only so.
        failed = ask(worker, "train")
        assert failed == "schema-mismatch"
        # An action that the client does not have fails in the worker itself.
        assert ask(worker, "train.other") == "unexpected"
        assert worker.pid == pid
        assert (worker.resident_mb() or 0) > 10
        assert worker.end()
        assert not worker.end()
        assert not Path(f"/proc/{pid}/statm").exists()


@pytest.mark.parametrize(
    "code",
    [
        "pass",
        "sys.exit(3)",
        "os.kill(os.getpid(), 9)",
        "print('hello')",
        "out.write(b'\\xff' * 100)",
        "write_frame(out, Frame(header={'kind': 'failed', 'code': 'a secret'}))",
        "write_frame(out, Frame(header={'kind': 'failed'}))",
        "write_frame(out, Frame(header={'kind': 'answer', 'root': 'x', 'names': []}))",
        "write_frame(out, Frame(header=dict(kind='answer', root='x', names=['x']), parts=[b'y']))",
        "write_frame(out, Frame(header={'kind': 'answer', 'root': 1, 'names': 2}))",
    ],
)
def test_a_worker_that_does_not_answer_is_lost(code: str) -> None:
    with child(sys.executable, "-P", "-c", READS + code) as worker:
        with pytest.raises(WorkerLost):
            ask(worker)
        assert ask_again_is_possible(worker)


def ask_again_is_possible(worker: Child) -> bool:
    """The next question starts another process."""
    with pytest.raises(WorkerLost):
        ask(worker)
    return True


def test_a_worker_is_killed_when_it_may_not_go_on() -> None:
    with child(sys.executable, "-P", "-c", READS + "time.sleep(60)") as worker:
        started = time.monotonic()
        with pytest.raises(WorkerLost):
            ask(worker, seconds=0.2)
        assert time.monotonic() - started < 5
        assert worker.pid is None


def test_a_worker_that_cannot_be_started_is_lost() -> None:
    with child("/nowhere/python") as worker, pytest.raises(WorkerLost):
        ask(worker)
