"""The in-process grid: the ClientApp is called once per message, in order, with its own context."""

from __future__ import annotations

import tracemalloc

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from shared.errors import ProtocolError
from simulations.engine import InProcessGrid


def echo() -> tuple[ClientApp, list[int]]:
    app, called = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        called.append(int(context.node_config["partition-id"]))
        record = ConfigRecord({"node": context.node_id, "in": value_of(message, "x", "v")})
        return Message(RecordDict({"y": record}), reply_to=message)

    return app, called


def value_of(message: Message, record: str, key: str) -> int:
    found = message.content[record]
    assert isinstance(found, ConfigRecord)
    return int(str(found[key]))


def message(node: int, value: int) -> Message:
    return Message(RecordDict({"x": ConfigRecord({"v": value})}), node, "train", group_id="1")


def test_clients_run_when_their_reply_is_pulled_and_in_order() -> None:
    app, called = echo()
    grid = InProcessGrid(app, population=5)
    ids = grid.push_messages([message(node, 10 * node) for node in (4, 2, 5)])
    assert called == []
    replies = [grid.pull_messages(ids)[0] for _ in ids]
    assert called == [3, 1, 4]
    assert [r.metadata.src_node_id for r in replies] == [4, 2, 5]
    assert [r.metadata.reply_to_message_id for r in replies] == ids
    assert [value_of(r, "y", "in") for r in replies] == [40, 20, 50]
    assert grid.pull_messages(ids) == []


def test_send_and_receive_returns_every_reply() -> None:
    app, called = echo()
    grid = InProcessGrid(app, population=3)
    replies = grid.send_and_receive([message(node, 0) for node in (1, 3)], timeout=1.0)
    assert len(replies) == 2
    assert called == [0, 2]


def test_a_reply_nobody_asked_for_is_not_computed() -> None:
    app, called = echo()
    grid = InProcessGrid(app, population=3)
    grid.push_messages([message(1, 0)])
    wanted = grid.push_messages([message(2, 0)])
    assert len(grid.pull_messages(wanted)) == 1
    assert called == [1]


def test_the_run_is_fixed() -> None:
    grid = InProcessGrid(ClientApp(), population=1)
    assert grid.run.run_id == 1
    with pytest.raises(ProtocolError):
        grid.set_run(Run.create_empty(run_id=2))
    made = grid.create_message(RecordDict(), "train", 1, "g")
    assert made.metadata.group_id == "g"


def test_a_million_clients_cost_no_memory() -> None:
    app, _ = echo()
    tracemalloc.start()
    grid = InProcessGrid(app, population=1_000_000)
    ids = grid.push_messages([message(999_999, 0)])
    grid.pull_messages(ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(grid.get_node_ids()) == 1_000_000
    assert peak < 1_000_000


def test_a_clients_state_lasts_until_it_leaves_none() -> None:
    app = ClientApp()

    @app.train()
    def count(message: Message, context: Context) -> Message:
        known = context.state.get("seen")
        seen = int(str(known["n"])) + 1 if isinstance(known, ConfigRecord) else 1
        context.state["seen"] = ConfigRecord({"n": seen})
        if value_of(message, "x", "v") == 0:
            context.state.clear()
        return Message(RecordDict({"y": ConfigRecord({"in": seen})}), reply_to=message)

    grid = InProcessGrid(app, population=3)

    def seen(node: int, value: int) -> int:
        (reply,) = grid.send_and_receive([message(node, value)])
        return value_of(reply, "y", "in")

    assert [seen(1, 1), seen(1, 1), seen(2, 1), seen(1, 0), seen(1, 1)] == [1, 2, 1, 3, 1]
    assert seen(2, 0) == 2
    assert seen(2, 0) == 1
