"""One message from arrival to answer, against a small server in memory and a worker that echoes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from client.fleet.errand import Errands, Owner, policy_problem
from client.fleet.fleet_pb2 import Message
from client.fleet.identity import ServerClock
from client.fleet.messages import Answered, Question, RunInfo
from client.fleet.objects import MESSAGE, RECORD_DICT, Tree, build, object_id, parse, under, verify
from client.fleet.protocol import LOST_UPLOAD, NotYet, RunOver, Upload
from client.fleet.records import Record, decode, encode
from client.fleet.settings import NodeSettings
from client.fleet.status import Board
from client.fleet.transport import Endpoint
from shared.errors import ConfigError, ServerUnreachable

NODE = 17
ECHO = (
    "import sys;from client.fleet.frames import *\n"
    "while (f := read_frame(sys.stdin.buffer)):\n"
    "    write_frame(sys.stdout.buffer, Frame(header={'kind': 'answer', 'root': f.header['root'],"
    "'names': f.header['names'], 'seconds': 0.0}, parts=f.parts))"
)
SLEEP = "import sys,time;sys.stdin.buffer.read(9);time.sleep(60)"


@dataclass
class Server:
    """The calls of the protocol, answered from memory; ``trouble`` is raised first, in order."""

    contents: dict[str, bytes] = field(default_factory=dict)
    trouble: list[Exception] = field(default_factory=list)
    bundle: str = ""
    running: bool = True
    forgets_sessions: bool = False
    confirmed: list[str] = field(default_factory=list)
    received: dict[str, bytes] = field(default_factory=dict)
    announced: list[Answered] = field(default_factory=list)

    def _call(self) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        if not self.running:
            raise RunOver

    def pull_object(self, node_id: int, question: Question, name: str) -> bytes:
        self._call()
        return self.contents[name]

    def confirm(self, node_id: int, question: Question) -> None:
        self._call()
        self.confirmed.append(question.message_id)

    def run(self, node_id: int, run_id: int) -> RunInfo:
        self._call()
        return RunInfo(run_id=run_id, series_id=0, bundle=self.bundle, config={"a": 1})

    def push_message(self, node_id: int, answered: Answered, *, seconds: float) -> Upload:
        """Take an announcement; none may say how long the work took, as that follows the data."""
        assert seconds == 0.0
        self._call()
        self.announced.append(answered)
        wanted = () if self.forgets_sessions else tuple(answered.tree.contents)
        return Upload(session_id="s", wanted=wanted)

    def push_object(
        self, node_id: int, run_id: int, upload: Upload, name: str, content: bytes
    ) -> bool:
        self._call()
        if (upload == LOST_UPLOAD) != self.forgets_sessions:
            return False
        self.received[name] = content
        return True

    def answers(self) -> list[Record]:
        """Return the contents that arrived whole."""
        found = []
        for answered in self.announced:
            tree = verify(Tree(root=answered.tree.root, contents=self.received), MESSAGE)
            found.append(decode(under(tree, parse(tree.contents[tree.root]).children[0])))
        return found

    def failure(self) -> str:
        """Return the code of the only answer."""
        (found,) = self.answers()
        return str(found.configs["fedslm"]["failure"])


def asked(server: Server, record: Record, **changes: Any) -> Question:
    """Put a message into the server and return its head."""
    question = Question(
        message_id="",
        run_id=5,
        source=1,
        kind="train",
        group="1",
        created_at=time.time(),
        ttl=30.0,
    )
    content = encode(record)
    head = Message()
    head.metadata.run_id, head.metadata.src_node_id = question.run_id, question.source
    head.metadata.message_type, head.metadata.group_id = question.kind, question.group
    root = build(MESSAGE, [content.root], head.SerializeToString())
    server.contents |= {**content.contents, object_id(root): root}
    return replace(question, **{"message_id": object_id(root), **changes})


@dataclass
class Desk:
    """A node without its loop."""

    errands: Errands
    events: list[Mapping[str, Any]]
    reasons: list[str]
    stop: threading.Event
    policy: Path

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(server: Server, worker: str = ECHO, **changes: Any) -> Desk:
        policy = tmp_path / "policy.toml"
        policy.write_text("schema = 1\n", encoding="utf-8")
        settings = NodeSettings(
            endpoint=Endpoint(host="127.0.0.1", port=1, ca=None),
            key=tmp_path / "key",
            policy=policy,
            status=tmp_path / "status.json",
            node_config={"partition-id": 0},
            command=(sys.executable, "-P", "-c", worker),
            **changes,
        )
        events: list[Mapping[str, Any]] = []
        reasons: list[str] = []
        stop = threading.Event()
        errands = Errands(
            settings,
            client=server,  # type: ignore[arg-type]
            clock=ServerClock(),
            owner=Owner(policy, lambda: tuple(reasons)),
            board=Board(settings.status, events.append),
            stop=stop,
        )
        found = Desk(errands, events, reasons, stop, policy)
        made.append(found)
        return found

    yield make
    for found in made:
        found.errands.child.end()


ASKED = Record(configs={"c": {"a": 1, "b": [1.0]}})


def test_a_message_is_answered_once(desk: Callable[..., Desk]) -> None:
    server = Server()
    here, question = desk(server), asked(server, ASKED)
    here.errands.handle(NODE, question)
    here.errands.handle(NODE, question)
    assert [dict(found.configs["c"]) for found in server.answers()] == [{"a": 1, "b": [1.0]}]
    assert server.confirmed == [question.message_id]
    assert here.names() == ["message", "worker-started", "answered", "duplicate"]
    assert here.errands.run_id == 5


def test_a_message_that_nobody_waits_for_is_left(desk: Callable[..., Desk]) -> None:
    server = Server()
    here = desk(server)
    here.errands.handle(NODE, asked(server, ASKED, created_at=time.time() - 100))
    assert (here.names(), server.announced) == (["late"], [])


def test_without_a_policy_or_against_the_conditions_nothing_is_fetched(
    desk: Callable[..., Desk],
) -> None:
    for spoil in ("missing", "broken", "conditions"):
        server = Server()
        here, question = desk(server), asked(server, ASKED)
        if spoil == "missing":
            here.policy.unlink()
        elif spoil == "broken":
            here.policy.write_text("= nothing", encoding="utf-8")
        else:
            here.reasons.append("on battery")
        here.errands.handle(NODE, question)
        assert server.failure() == "policy-refused"
        assert server.confirmed == []
        assert here.names() == ["message", "refused"]
        assert here.errands.child.pid is None


def test_a_run_of_another_bundle_is_refused(desk: Callable[..., Desk]) -> None:
    server = Server(bundle="b" * 64)
    here = desk(server, bundles=frozenset({"a" * 64}))
    here.errands.handle(NODE, asked(server, ASKED))
    assert server.failure() == "policy-refused"
    trusted = desk(Server(bundle="a" * 64), bundles=frozenset({"a" * 64}))
    assert trusted.names() == []


def test_objects_that_are_not_what_they_should_be_are_refused(desk: Callable[..., Desk]) -> None:
    for change in (b"junk", build(MESSAGE, (), b"\xff"), build(RECORD_DICT, (), b"{}")):
        server = Server()
        question = replace(asked(server, ASKED), message_id=object_id(change))
        server.contents[question.message_id] = change
        desk(server).errands.handle(NODE, question)
        assert server.failure() == "schema-mismatch"
    server = Server()
    question = asked(server, ASKED)
    server.contents[question.message_id] += b"x"
    desk(server).errands.handle(NODE, question)
    assert server.failure() == "schema-mismatch"


def test_a_server_that_is_away_for_a_while_is_waited_for(desk: Callable[..., Desk]) -> None:
    away = [ServerUnreachable("away"), NotYet(), ServerUnreachable("away")]
    server = Server(trouble=list(away))
    here = desk(server)
    here.errands.handle(NODE, asked(server, ASKED))
    assert len(server.answers()) == 1
    assert here.names().count("away") == here.names().count("back") == 1


def test_a_server_that_stays_away_is_left_when_nobody_waits(desk: Callable[..., Desk]) -> None:
    server = Server(trouble=[ServerUnreachable("away")] * 100)
    here = desk(server)
    with pytest.raises(ServerUnreachable):
        here.errands.handle(NODE, asked(server, ASKED, ttl=0.6))
    assert server.announced == []


def test_a_lost_announcement_still_brings_its_objects(desk: Callable[..., Desk]) -> None:
    server = Server(forgets_sessions=True)
    desk(server).errands.handle(NODE, asked(server, ASKED))
    assert len(server.answers()) == 1


def test_a_run_that_is_over_is_forgotten(desk: Callable[..., Desk]) -> None:
    server = Server()
    here = desk(server)
    here.errands.handle(NODE, asked(server, ASKED))
    server.running = False
    here.errands.handle(NODE, asked(server, Record(configs={"c": {"a": 2}})))
    assert here.names()[-1] == "run-over"
    assert here.errands.run_id is None


@contextmanager
def soon(act: Callable[[], Any]) -> Iterator[None]:
    timer = threading.Timer(0.5, act)
    timer.start()
    yield
    timer.join()


@pytest.mark.slow
def test_a_first_answer_that_comes_too_late_leaves_a_warm_worker(desk: Callable[..., Desk]) -> None:
    """A device whose model takes longer to load than a round lasts is there for a later round."""
    server = Server()
    here = desk(server, "import time;time.sleep(2.5)\n" + ECHO)
    here.errands.handle(NODE, asked(server, Record(configs={"r": {"a": 1}}), ttl=1.0))
    pid = here.errands.child.pid
    assert pid is not None
    assert here.names() == ["message", "worker-started", "late"]
    assert server.announced == []
    here.errands.handle(NODE, asked(server, Record(configs={"r": {"a": 2}})))
    assert here.errands.child.pid == pid
    assert here.names()[3:] == ["message", "answered"]


@pytest.mark.slow
def test_a_warm_worker_is_killed_when_nobody_waits_any_more(desk: Callable[..., Desk]) -> None:
    server = Server()
    here = desk(server)
    here.errands.handle(NODE, asked(server, Record(configs={"r": {"a": 1}})))
    pid = here.errands.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    here.errands.handle(NODE, asked(server, Record(configs={"r": {"a": 2}}), ttl=1.0))
    assert here.errands.child.pid is None
    assert here.names()[3:] == ["message", "worker-lost", "late"]


def test_conditions_that_fail_end_the_work(desk: Callable[..., Desk]) -> None:
    server = Server()
    here = desk(server, SLEEP)
    started = time.monotonic()
    with soon(lambda: here.reasons.append("the owner is back")):
        here.errands.handle(NODE, asked(server, ASKED))
    assert server.failure() == "policy-refused"
    assert here.errands.child.pid is None
    assert time.monotonic() - started < 10


def test_a_worker_that_dies_is_a_failure_and_the_next_message_has_another(
    desk: Callable[..., Desk],
) -> None:
    server = Server()
    here = desk(server, "import sys; sys.stdin.buffer.read(9)")
    here.errands.handle(NODE, asked(server, ASKED))
    assert server.failure() == "unexpected"
    assert here.names() == ["message", "worker-started", "worker-lost", "failed"]


def test_a_node_that_stops_answers_nothing(desk: Callable[..., Desk]) -> None:
    server = Server()
    here = desk(server, SLEEP)
    with soon(here.stop.set), pytest.raises(ServerUnreachable):
        here.errands.handle(NODE, asked(server, ASKED))
    assert server.announced == []
    assert here.errands.child.pid is None


def test_a_policy_is_looked_at_without_being_understood(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    assert "read" in (policy_problem(path) or "")
    path.write_text("anything = 1\n", encoding="utf-8")
    assert policy_problem(path) is None
    for data in (b"\xff", b"a = ", b"x" * (1 << 20) + b"x"):
        path.write_bytes(data)
        assert policy_problem(path) is not None
    assert policy_problem(tmp_path) is not None


def test_conditions_are_asked_once_a_second_and_may_fail(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("", encoding="utf-8")
    asked_at: list[float] = []

    def conditions() -> Sequence[str]:
        asked_at.append(time.monotonic())
        msg = "the policy is wrong"
        raise ConfigError(msg)

    owner = Owner(path, conditions)
    assert [owner.reasons() for _ in range(50)] == [
        ("the conditions cannot be read (config)",)
    ] * 50
    assert len(asked_at) == 1
