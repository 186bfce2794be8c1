"""Our node against a real SuperLink of the pinned Flower, beside a stock SuperNode."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.fleet.identity import NodeIdentity, ServerClock
from client.fleet.messages import Question, answer, failure
from client.fleet.objects import MESSAGE, collect, under
from client.fleet.protocol import LOST_UPLOAD, FleetClient, NotYet, RunOver
from client.fleet.records import Record, decode, encode
from client.fleet.transport import Connection, Endpoint
from shared.errors import AccessDenied, CertificateInvalid, FedSLMError, ServerUnreachable
from shared.pki import Authority, new_key, openssh_form
from tests.contract.fleetnode import RunningNode, prepare
from tests.contract.superlink import SuperLink, end, superlink, wait_for

pytestmark = pytest.mark.slow

HEARTBEAT = 10.0
HANDS: list[Hand] = []


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with superlink(tmp_path_factory.mktemp("superlink")) as link:
        yield link


@pytest.fixture
def link(running: SuperLink) -> Iterator[SuperLink]:
    """A SuperLink on which no node is left from the test before."""
    before = list(running.processes)
    running.rounds_file.unlink(missing_ok=True)
    yield running
    while HANDS:
        HANDS.pop().close()
    for process in running.processes[:]:
        if process not in before:
            end(process, signal.SIGTERM)
            running.processes.remove(process)


def start_node(
    link: SuperLink, name: str, partition: int = 0, key: Path | None = None
) -> RunningNode:
    """Start our node as a process and wait until it joined."""
    folder = prepare(link.folder / name)
    key = link.make_key(name) if key is None else key
    module = [sys.executable, "-m", "tests.contract.fleetnode"]
    arguments = [str(folder), str(link.port), str(key), str(partition)]
    node = RunningNode(folder, link.spawn(f"{name}-process", *module, *arguments))
    wait_for(lambda: "joined" in node.names(), 20, "joining")
    return node


class Hand:
    """The protocol by hand, in this process."""

    def __init__(self, link: SuperLink, key: Path, *, ca: Path | None = None) -> None:
        self.identity = NodeIdentity.load(key)
        self.clock = ServerClock()
        endpoint = Endpoint(host="127.0.0.1", port=link.port, ca=link.ca if ca is None else ca)
        self.connection = Connection(endpoint, self.identity, self.clock)
        self.client = FleetClient(self.connection)
        self.node_id: int | None = None
        HANDS.append(self)

    def join(self) -> int:
        key = self.identity.public_key
        self.node_id = self.client.activate(key, heartbeat_seconds=HEARTBEAT)
        return self.node_id

    def close(self) -> None:
        """Leave, if it joined and has not left yet."""
        if self.node_id is not None:
            with suppress(FedSLMError):
                self.client.deactivate(self.node_id)
        self.connection.close()

    def take(self, node_id: int) -> tuple[Question, Record]:
        """Take the next message and read its content."""
        question: Question = wait_for(lambda: self.client.pull_message(node_id), 20, "a message")

        def fetch(name: str) -> bytes:
            while True:
                with suppress(NotYet):
                    return self.client.pull_object(node_id, question, name)

        tree = collect(question.message_id, MESSAGE, fetch)
        self.client.confirm(node_id, question)
        content = next(n for n, c in tree.contents.items() if c.startswith(b"RecordDict "))
        return question, decode(under(tree, content))

    def send(self, node_id: int, question: Question, record: Record) -> int:
        """Send an answer; return how many objects the server wanted."""
        answered = answer(question, encode(record), node_id=node_id, now=self.clock.now())
        upload = self.client.push_message(node_id, answered, seconds=0.1)
        for name in upload.wanted:
            content = answered.tree.contents[name]
            assert self.client.push_object(node_id, question.run_id, upload, name, content)
        return len(upload.wanted)


def reply(value: float, count: int) -> Record:
    return Record(
        arrays={"arrays": {"v": np.full(4, value, dtype=np.float32)}},
        metrics={"answer": {"count": count, "pid": 0, "partition": 0}},
    )


def only(round_: dict[str, Any]) -> dict[str, Any]:
    """Return the one answer of a round."""
    (found,) = round_["answers"]
    assert isinstance(found, dict)
    return found


def test_our_node_and_a_stock_one_serve_one_run(link: SuperLink) -> None:
    start_node(link, "both-0", 0)
    link.start_supernode(link.make_key("both-1"), 1)
    link.start_run(rounds=2, nodes=2, patience=40.0)
    rounds = link.wait_rounds(2, 55)
    by_partition: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for number, found in enumerate(rounds, start=1):
        for given in found["answers"]:
            assert given["values"] == [number + 1.0, number + 1.0]
            by_partition[given["partition"]].append(given)
    # Each keeps its context over the run; ours keeps its process too.
    assert [[a["count"] for a in given] for given in by_partition.values()] == [[1, 2], [1, 2]]
    ours, stock = ({a["pid"] for a in given} for given in by_partition.values())
    assert (len(ours), len(stock)) == (1, 2)


def test_an_array_of_several_chunks_comes_and_goes(link: SuperLink) -> None:
    node = start_node(link, "large")
    link.start_run(rounds=2, nodes=1, size=3_000_000)
    rounds = link.wait_rounds(2, 50)
    assert [only(found)["values"] for found in rounds] == [[2.0, 2.0], [3.0, 3.0]]
    assert node.status()["answered"] == 2


def test_a_superlink_that_is_killed_in_mid_run_loses_nothing(tmp_path: Path) -> None:
    with superlink(tmp_path) as link:
        node = start_node(link, "survivor")
        link.start_run(rounds=4, nodes=1, start="1.0", patience=50.0)
        link.wait_rounds(1, 30)
        wait_for(lambda: node.names().count("message") >= 2, 20, "the second message")
        process = link.processes.pop(0)
        end(process)
        wait_for(lambda: "away" in node.names(), 30, "noticing")
        link.processes.insert(0, link.start_link())
        rounds = link.wait_rounds(4, 60)
        assert [only(found)["count"] for found in rounds] == [1, 2, 3, 4]
        assert len({only(found)["pid"] for found in rounds}) == 1
        assert node.names().count("joined") == 1
        assert "back" in node.names()


def test_an_answer_is_kept_once_however_often_it_is_sent(link: SuperLink) -> None:
    hand = Hand(link, link.make_key("twice"))
    node_id = hand.join()
    run_id = link.start_run(rounds=1, nodes=1)
    question, record = hand.take(node_id)
    assert np.asarray(record.arrays["arrays"]["v"]).tolist() == [1.0] * 4
    assert dict(hand.client.run(node_id, run_id).config)["rounds"] == 1
    first = answer(question, encode(reply(7.0, 1)), node_id=node_id, now=hand.clock.now())
    lost = hand.client.push_message(node_id, first, seconds=0.1)
    assert set(lost.wanted) == set(first.tree.contents)
    wait_for(lambda: not hand.client.push_message(node_id, first, seconds=0.1).wanted, 10, "taking")
    # The server has given the answer to the app, which waits for its objects.
    for name, content in first.tree.contents.items():
        assert hand.client.push_object(node_id, run_id, LOST_UPLOAD, name, content)
    assert not hand.client.push_object(node_id, run_id, lost, first.tree.root, b"again")
    with suppress(RunOver):  # the run may be over by now
        assert hand.send(node_id, question, reply(9.0, 2)) == 0
    (found,) = link.wait_rounds(1, 20)
    assert only(found)["values"] == [7.0, 7.0]
    wait_for(lambda: link.run_status(run_id) == "completed", 20, "the end of the run")
    with pytest.raises(RunOver):
        hand.client.run(node_id, run_id)
    with pytest.raises(RunOver):
        hand.send(node_id, question, reply(9.0, 2))


def test_a_failure_reaches_the_server_as_a_code(link: SuperLink) -> None:
    hand = Hand(link, link.make_key("failing"))
    node_id = hand.join()
    link.start_run(rounds=1, nodes=1)
    question, _ = hand.take(node_id)
    hand.send(node_id, question, decode(failure("policy-refused")))
    (found,) = link.wait_rounds(1, 20)
    assert only(found)["failure"] == {"protocol": 1, "failure": "policy-refused"}


def test_the_server_says_whom_it_does_not_take(link: SuperLink, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.key"
    stranger.write_bytes(openssh_form(new_key()))
    stranger.chmod(0o600)
    with pytest.raises(AccessDenied, match="join"):
        Hand(link, stranger).join()
    key = link.make_key("member")
    hand = Hand(link, key)
    node_id = hand.join()
    with pytest.raises(AccessDenied, match="join"):
        Hand(link, key).join()  # two nodes with one key
    with pytest.raises(AccessDenied):
        Hand(link, stranger).client.pull_message(node_id)  # a node that speaks for another
    hand.client.deactivate(node_id)
    assert Hand(link, key).join() == node_id


def test_another_authority_or_no_tls_is_refused(link: SuperLink, tmp_path: Path) -> None:
    key = link.make_key("careful")
    other = tmp_path / "other.crt"
    other.write_bytes(Authority.create("another", days=1).certificate)
    with pytest.raises(CertificateInvalid):
        Hand(link, key, ca=other).join()
    hand = Hand(link, key)
    plain = Endpoint(host="127.0.0.1", port=link.port, ca=None)
    client = FleetClient(Connection(plain, hand.identity, hand.clock))
    with pytest.raises(ServerUnreachable):
        client.activate(hand.identity.public_key, heartbeat_seconds=HEARTBEAT)


@pytest.mark.parametrize("days", [-3, 3])
def test_a_clock_that_is_wrong_by_days_is_set_by_the_server(link: SuperLink, days: int) -> None:
    hand = Hand(link, link.make_key(f"clock{days}"))
    hand.clock.offset = days * 86400.0
    hand.join()
    assert abs(hand.clock.offset) < 5


def test_the_owners_conditions_stop_work_at_once(link: SuperLink) -> None:
    node = start_node(link, "owned")
    link.start_run(rounds=1, nodes=1, start="30.0", patience=40.0)
    wait_for(lambda: "worker-started" in node.names(), 30, "starting the worker")
    (node.folder / "conditions").write_text("on battery\n", encoding="utf-8")
    (found,) = link.wait_rounds(1, 15)
    assert only(found)["failure"] == {"protocol": 1, "failure": "policy-refused"}
    wait_for(lambda: node.names()[-1] == "paused", 10, "pausing")
    status = node.status()
    assert (status["state"], status["reasons"], status["refused"]) == ("paused", ["on battery"], 1)
    (node.folder / "conditions").unlink()
    wait_for(lambda: node.names()[-1] == "joined", 10, "resuming")
    link.rounds_file.unlink()
    link.start_run(rounds=1, nodes=1)
    (found,) = link.wait_rounds(1, 30)
    assert only(found)["values"] == [2.0, 2.0]


def test_a_node_stops_quickly_and_its_worker_with_it(link: SuperLink) -> None:
    key = link.make_key("mortal")
    node = start_node(link, "mortal", key=key)
    run_id = link.start_run(rounds=1, nodes=1, start="30.0", patience=40.0)
    wait_for(lambda: "worker-started" in node.names(), 30, "starting the worker")
    worker = wait_for(lambda: _children(node.process.pid), 10, "the worker's process")
    threading.Timer(0.1, node.process.terminate).start()
    assert node.process.wait(5) == 0
    assert node.names()[-1] == "stopped"
    assert node.status()["state"] == "stopped"
    assert not any(map(_alive, worker))
    # It said goodbye: the server waits for it no longer, and lets it in again at once.
    wait_for(lambda: link.run_status(run_id) == "completed", 15, "giving up the node")
    again = start_node(link, "mortal", key=key)
    link.start_run(rounds=1, nodes=1, start="30.0", patience=40.0)
    wait_for(lambda: again.names().count("worker-started") == 2, 30, "the second message")
    worker = wait_for(lambda: _children(again.process.pid), 10, "the worker's process")
    again.process.kill()
    again.process.wait(5)
    wait_for(lambda: not any(map(_alive, worker)), 5, "the end of the worker")


def _children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "(python) Z" not in Path(f"/proc/{pid}/stat").read_text()
