"""Replies that Flower itself cannot put together, that answer for others, or that never come.

A grid that behaves as Flower's does towards a hostile node stands for it here; the real one is in
``tests/hostile/test_fleet.py``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from google.protobuf.message import DecodeError

from server.messenger import TRAIN, Messenger
from shared.errors import SchemaMismatch
from shared.wire import decode_update
from simulations.engine import InProcessGrid

NODES = (1, 2, 3)
HOSTILE = 2
Pull = Callable[[Callable[[], list[Message]]], list[Message]]


def echo() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        del context
        return Message(message.content, reply_to=message)

    return app


class RemoteGrid(InProcessGrid):
    """A grid of nodes elsewhere, one of which is hostile."""

    nodes_are_clients = False

    def __init__(self, pull: Pull) -> None:
        super().__init__(echo(), len(NODES))
        self._pull = pull
        self._node_of: dict[str, int] = {}
        self._lock = threading.Lock()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Remember whom each message is for."""
        taken = list(messages)
        found = super().push_messages(taken)
        self._node_of |= {
            name: message.metadata.dst_node_id for name, message in zip(found, taken, strict=True)
        }
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Put the hostile node's reply together as it likes."""
        wanted = list(message_ids)

        def honest() -> list[Message]:
            with self._lock:
                queue = list(self._queue)
                for message in queue:
                    if message.metadata.message_id in wanted:
                        self._queue.remove(message)
                        return [self._call(message)]
            return []

        if any(self._node_of[name] == HOSTILE for name in wanted):
            return self._pull(honest)
        return honest()


def exchange(pull: Pull, *, seconds: float = 3.0) -> tuple[dict[int, RecordDict | None], float]:
    """Ask three nodes; return what came, and how long that took."""
    messenger = Messenger(RemoteGrid(pull), deadline_seconds=seconds)
    contents: Mapping[int, RecordDict] = {node: RecordDict() for node in NODES}
    began = time.monotonic()
    found = dict(messenger.exchange(TRAIN, contents, group="1"))
    return found, time.monotonic() - began


def fails(error: Exception) -> Pull:
    def pull(honest: Callable[[], list[Message]]) -> list[Message]:
        raise error

    return pull


UNREADABLE = [
    json.JSONDecodeError("no", "doc", 0),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "no"),
    UnexpectedObjectContentError("id", "no"),
    DecodeError("no"),
    KeyError("no"),
    IndexError("no"),
    TypeError("no"),
    AttributeError("no"),
    RecursionError("no"),
    OverflowError("no"),
    AssertionError("no"),
]


@pytest.mark.parametrize("error", UNREADABLE, ids=lambda error: type(error).__name__)
def test_a_reply_that_cannot_be_put_together_costs_only_its_sender(error: Exception) -> None:
    found, _ = exchange(fails(error))
    assert set(found) == set(NODES)
    broken = found[HOSTILE]
    assert broken is not None
    with pytest.raises(SchemaMismatch):
        decode_update(broken, server_round=1, config_digest="c", stage="plain", size=1)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no"), httpx.ReadTimeout("no"), ConnectionResetError("no")]
)
def test_trouble_on_the_way_is_nobodys_fault_and_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        exchange(fails(error))


@pytest.mark.parametrize("target", ["1", "3", "", "another"])
def test_a_reply_that_answers_for_another_counts_for_nobody_else(target: str) -> None:
    """The head inside a reply is the node's own; the SuperLink compares only the one outside."""

    def pull(honest: Callable[[], list[Message]]) -> list[Message]:
        replies = honest()
        for reply in replies:
            reply.metadata.__dict__["_reply_to_message_id"] = target
            reply.content["planted"] = ConfigRecord({"from": HOSTILE})
        return replies

    found, _ = exchange(pull)
    assert {node: list(reply or ()) for node, reply in found.items()} == {1: [], 2: [], 3: []}


@pytest.mark.timeout(30)
def test_pieces_that_never_come_hold_nobody_up() -> None:
    """Flower waits up to two hours for the pieces of a reply that was announced."""
    released = threading.Event()

    def pull(honest: Callable[[], list[Message]]) -> list[Message]:
        released.wait(20)
        return []

    try:
        found, took = exchange(pull, seconds=4.0)
    finally:
        released.set()
    assert set(found) == {1, 3}
    assert took < 8


def test_pieces_that_come_late_are_taken() -> None:
    def pull(honest: Callable[[], list[Message]]) -> list[Message]:
        time.sleep(2.5)
        return honest()

    found, _ = exchange(pull, seconds=20.0)
    assert set(found) == set(NODES)


def test_an_error_of_flowers_is_no_content() -> None:
    from flwr.app import Error

    def pull(honest: Callable[[], list[Message]]) -> list[Message]:
        return [make_message(metadata=m.metadata, error=Error(1, "no")) for m in honest()]

    found, _ = exchange(pull)
    assert found == {1: RecordDict(), 2: None, 3: RecordDict()}
