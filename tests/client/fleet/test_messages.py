"""Questions and answers: Flower and our own wire codec read what is written without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from client.fleet import messages
from client.fleet.fleet_pb2 import Message as NodeMessage
from client.fleet.fleet_pb2 import Run, Scalar
from client.fleet.messages import answer, content_of, failure, object_tree, read_question, read_run
from client.fleet.objects import MESSAGE, Tree, under, verify
from client.fleet.records import Record, decode, encode
from client.fleet.worker import from_flower, settings_of, to_flower
from client.node import BASE, DATA, POLICY, STATE
from shared import wire
from shared.errors import ClientFailed, SchemaMismatch, all_errors

NODE = 17


def flower_message(**changes: Any) -> Message:
    """Return an instruction as Flower makes it."""
    fields: dict[str, Any] = {
        "run_id": 5,
        "message_id": "",
        "src_node_id": 1,
        "dst_node_id": NODE,
        "reply_to_message_id": "",
        "group_id": "3",
        "created_at": 1_800_000_000.0,
        "ttl": 60.0,
        "message_type": "train",
        "src_task_id": 11,
        **changes,
    }
    content = RecordDict({"c": ConfigRecord({"a": 1})})
    return Message(content, metadata=Metadata(**fields))  # type: ignore[call-overload, no-any-return]


def sent(message: Message) -> tuple[NodeMessage, Tree]:
    """Return the head that the server sends, and the objects."""
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    found = message.metadata
    head = NodeMessage()
    head.metadata.run_id, head.metadata.message_id = found.run_id, message.object_id
    head.metadata.src_node_id, head.metadata.dst_node_id = found.src_node_id, found.dst_node_id
    head.metadata.group_id, head.metadata.message_type = found.group_id, found.message_type
    head.metadata.created_at, head.metadata.ttl = found.created_at, found.ttl
    if found.src_task_id is not None:
        head.metadata.src_task_id = found.src_task_id
    return head, Tree(root=message.object_id, contents=contents)


def test_an_instruction_of_flowers_is_read() -> None:
    head, tree = sent(flower_message())
    question = read_question(head, node_id=NODE)
    assert (question.run_id, question.source, question.group) == (5, 1, "3")
    assert question.expires == 1_800_000_060.0
    assert (question.source_task, question.task) == (11, None)
    checked = verify(tree, MESSAGE)
    content = under(checked, content_of(question, checked))
    assert decode(content).configs == {"c": {"a": 1}}


def test_flower_reads_an_answer() -> None:
    head, _ = sent(flower_message())
    question = read_question(head, node_id=NODE)
    record = Record(metrics={"m": {"x": 1.5}})
    found = answer(question, encode(record), node_id=NODE, now=1_800_000_020.0)
    theirs: Any = inflate_object_from_contents(found.tree.root, dict(found.tree.contents))
    assert theirs.content["m"]["x"] == 1.5
    metadata = theirs.metadata
    assert (metadata.src_node_id, metadata.dst_node_id) == (NODE, 1)
    assert metadata.reply_to_message_id == question.message_id
    assert (metadata.created_at, metadata.ttl) == (1_800_000_020.0, 40.0)
    assert (metadata.src_task_id, metadata.dst_task_id) == (None, 11)
    # The name of a message is that of its root, as Flower computes it.
    metadata.__dict__["_message_id"] = theirs.object_id
    assert theirs.object_id == found.message.metadata.message_id
    on_the_wire = FlowerMessage.FromString(found.message.SerializeToString())
    assert on_the_wire.HasField("content")
    assert on_the_wire.metadata.message_id == found.tree.root


def test_the_tree_names_every_object_once_a_parent() -> None:
    contents = {"a": {"v": np.zeros(3_000_000, dtype=np.float32)}}
    tree = encode(Record(arrays=contents))
    named = object_tree(tree)
    assert named.object_id == tree.root
    names: list[str] = []
    level = [named]
    while level:
        names += [node.object_id for node in level]
        level = [child for node in level for child in node.children]
    assert sorted(names) == sorted(tree.contents)


@pytest.mark.parametrize(
    "change",
    [
        {"message_id": "x"},
        {"run_id": 0},
        {"src_node_id": 0},
        {"dst_node_id": NODE + 1},
        {"reply_to_message_id": "a" * 64},
        {"message_type": "system"},
        {"message_type": "train.a b"},
        {"message_type": "train\n"},
        {"group_id": "g" * 257},
        {"created_at": float("nan")},
        {"ttl": float("inf")},
        {"ttl": 0.0},
        {"ttl": -1.0},
    ],
    ids=str,
)
def test_a_head_that_no_instruction_has_is_refused(change: dict[str, Any]) -> None:
    head, _ = sent(flower_message())
    for name, value in change.items():
        setattr(head.metadata, name, value)
    with pytest.raises(SchemaMismatch):
        read_question(head, node_id=NODE)


def test_an_error_is_no_instruction() -> None:
    head, _ = sent(flower_message())
    head.error.code = 1
    with pytest.raises(SchemaMismatch):
        read_question(head, node_id=NODE)


@pytest.mark.parametrize("name", ["run_id", "src_node_id", "group_id", "message_type"])
def test_an_object_of_another_message_is_refused(name: str) -> None:
    change = {"run_id": 6, "src_node_id": 2, "group_id": "4", "message_type": "query"}[name]
    _, tree = sent(flower_message(**{name: change}))
    head, _ = sent(flower_message())
    head.metadata.message_id = tree.root
    question = read_question(head, node_id=NODE)
    with pytest.raises(SchemaMismatch):
        content_of(question, verify(tree, MESSAGE))


@pytest.mark.parametrize("code", sorted({error.code for error in all_errors()}))
def test_our_server_reads_a_failure(code: str) -> None:
    content = to_flower(decode(failure(code)))
    assert content.object_id == wire.encode_failure(code).object_id
    with pytest.raises(ClientFailed, match=code):
        wire.decode_measurement(content)


def test_a_failure_is_a_known_code() -> None:
    with pytest.raises(SchemaMismatch):
        failure("a record of the device")
    assert (messages.HEADER, messages.PROTOCOL) == (wire.HEADER, wire.PROTOCOL)


def test_the_worker_changes_nothing_between_flower_and_us() -> None:
    content = RecordDict(
        {
            "b": ConfigRecord({"x": b"y", "l": [1, 2]}),
            "a": ArrayRecord({"v": Array(np.arange(4, dtype=np.float32))}),
        }
    )
    assert to_flower(from_flower(content)).object_id == content.object_id
    assert encode(from_flower(content)).root == content.object_id


def test_a_run_is_read_with_its_settings() -> None:
    run = Run(run_id=3, series_id=4, fab_hash="h")
    for key, value in {
        "i": Scalar(sint64=-1),
        "f": Scalar(flag=True),
        "s": Scalar(string="s"),
    }.items():
        run.override_config[key].CopyFrom(value)
    run.override_config["d"].CopyFrom(Scalar(data=b"\0"))
    run.override_config["empty"].CopyFrom(Scalar())
    found = read_run(run)
    assert (found.run_id, found.series_id, found.bundle) == (3, 4, "h")
    assert dict(found.config) == {"i": -1, "f": True, "s": "s", "d": b"\0"}
    assert settings_of({"d": {"base64": "AA=="}, "i": 1}) == {"d": b"\0", "i": 1}


def test_the_client_finds_the_nodes_settings() -> None:
    from client.fleet import settings

    assert (settings.DATA, settings.BASE) == (DATA, BASE)
    assert (settings.POLICY, settings.STATE) == (POLICY, STATE)
