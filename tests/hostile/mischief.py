"""A node that is enrolled and hostile: in each round it sends another thing that it should not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from client.fleet import fleet_pb2 as pb
from client.fleet.messages import Answered, Question, answer, object_tree
from client.fleet.objects import RECORD_DICT, Tree, build, object_id
from client.fleet.records import Record, encode
from client.fleet.transport import Endpoint
from server.home import ServerHome
from simulations.benchmarks.lightnodes import LightNode, Tally, always, enroll_keys

Mischief = Callable[["HostileNode", int, Question, Record], None]


@dataclass
class Deeds:
    """What a hostile node does, and what it did.

    Attributes:
        plan: a mischief for each round, by the round's number.
        done: names of mischiefs that went through to their end.
        statuses: what the server said to pushes that it should turn away.
        number: Flower's number of the node.
    """

    plan: Mapping[int, Mischief]
    done: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    number: int = 0


class HostileNode(LightNode):
    """A light node that answers with what its plan says."""

    def __init__(self, *args: Any, deeds: Deeds, **named: Any) -> None:
        super().__init__(*args, **named)
        self.deeds = deeds
        self._update_made: Record | None = None

    def _update(self, node_id: int, question: Question) -> Record:
        self._update_made = super()._update(node_id, question)
        return self._update_made

    def _send(self, node_id: int, question: Question, content: Tree) -> None:
        """Send something else than an honest node would."""
        mischief = self.deeds.plan.get(int(question.group), honest)
        self.deeds.number = node_id
        assert self._update_made is not None
        mischief(self, node_id, question, self._update_made)
        self.deeds.done.append(mischief.__name__)

    def send(self, node_id: int, question: Question, content: Tree) -> None:
        """Send a content as an honest node does."""
        super()._send(node_id, question, content)

    def announce(self, node_id: int, question: Question, content: Tree) -> None:
        """Announce an answer and send none of its objects."""
        answered = answer(question, content, node_id=node_id, now=self._clock.now())
        self._fleet.push_message(node_id, answered, seconds=0.0)

    def push(self, node_id: int, answered: Answered) -> int:
        """Announce any answer, whatever it says; returns the status."""
        request = pb.PushMessagesRequest(
            node=pb.Node(node_id=node_id),
            messages_list=[answered.message],
            message_object_trees=[object_tree(answered.tree)],
            clientapp_runtime_list=[0.0],
        )
        found = self._connection.post("/v1/fleet/push-messages", request.SerializeToString())
        return found.status


def honest(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Answer as everybody does."""
    node.send(node_id, question, encode(update))


def no_json(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Send a content that names nothing."""
    del update
    root = build(RECORD_DICT, [], b"{not json")
    tree = Tree(root=object_id(root), contents={object_id(root): root})
    node.send(node_id, question, tree)


def another_kind(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Send an array that says it is pickled."""
    honest_tree = encode(update)
    contents = {
        name: content.replace(b"numpy.ndarray", b"pickled.object")
        for name, content in honest_tree.contents.items()
    }
    renamed: dict[str, bytes] = {}
    names: dict[str, str] = {}
    for old, content in contents.items():
        for before, after in names.items():
            content = content.replace(before.encode(), after.encode())
        head, _, body = content.partition(b"\0")
        kind, children, _ = head.decode().split(" ")
        whole = build(kind, children.split(",") if children else [], body)
        names[old] = object_id(whole)
        renamed[names[old]] = whole
    node.send(node_id, question, Tree(root=names[honest_tree.root], contents=renamed))


def changed(update: Record, vector: np.ndarray[Any, Any]) -> Tree:
    """Return an update with another vector."""
    return encode(Record(arrays={"adapter": {"vector": vector}}, configs=update.configs))


def vector_of(update: Record) -> np.ndarray[Any, Any]:
    """Return the vector of an update."""
    return update.arrays["adapter"]["vector"]


def not_finite(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Send NaN and both infinities."""
    vector = vector_of(update).copy()
    vector[:3] = [np.nan, np.inf, -np.inf]
    node.send(node_id, question, changed(update, vector))


def wrong_shape(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Send one number too many."""
    node.send(node_id, question, changed(update, np.append(vector_of(update), np.float32(0))))


def wrong_type(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Send integers."""
    node.send(node_id, question, changed(update, vector_of(update).astype(np.int64)))


def too_long(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Send an update a million times as long as the clip allows."""
    node.send(node_id, question, changed(update, vector_of(update) * np.float32(1e9)))


def another_protocol(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Say that the message is of another version."""
    header = {**update.configs["fedslm"], "protocol": 99}
    node.send(node_id, question, encode(Record(arrays=update.arrays, configs={"fedslm": header})))


def another_round(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Answer for a round to come."""
    header = {**update.configs["fedslm"], "server-round": 1_000_000}
    node.send(node_id, question, encode(Record(arrays=update.arrays, configs={"fedslm": header})))


def control_characters(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Send names that would clear the operator's terminal."""
    arrays = {"\x1b[2Jadapter\r\n": update.arrays["adapter"]}
    node.send(node_id, question, encode(Record(arrays=arrays, configs=update.configs)))


def announced_only(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Announce an answer that never comes."""
    node.announce(node_id, question, encode(update))


def speaks_for_another(node: HostileNode, node_id: int, question: Question, update: Record) -> None:
    """Push an answer whose source is another node."""
    tree = encode(update)
    answered = answer(question, tree, node_id=node_id ^ 1, now=node._clock.now())
    node.deeds.statuses.append(node.push(node_id, answered))


@contextmanager
def hostile_node(home: ServerHome, name: str, plan: Mapping[int, Mischief]) -> Iterator[Deeds]:
    """Enroll a node and let it do what it plans.

    Yields:
        What it did so far.
    """
    [(client, key)] = enroll_keys(home, [name])
    deeds, stop = Deeds(plan=plan), threading.Event()
    node = HostileNode(
        Endpoint(host="localhost", port=home.config.fleet_port, ca=home.ca_certificate),
        key,
        client=client,
        stage="clipped",
        habits=always,
        tally=Tally(),
        poll_seconds=0.5,
        stop=stop,
        deeds=deeds,
    )
    thread = threading.Thread(target=node.run, daemon=True)
    thread.start()
    try:
        yield deeds
    finally:
        stop.set()
        thread.join(20.0)
