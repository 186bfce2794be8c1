"""What a node is asked and what it answers, without Flower's classes.

A question is read from protobuf and checked; an answer is made of the objects of its content and of
a head that the node writes itself: whom it goes to, and until when it is of use, are not the
worker's to say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from client.fleet.fleet_pb2 import Message, Metadata, ObjectTree, RecordDict, Run
from client.fleet.objects import (
    CONFIG_RECORD,
    MESSAGE,
    RECORD_DICT,
    Tree,
    build,
    is_object_id,
    object_id,
    parse,
)
from client.fleet.values import write_configs
from shared.errors import SchemaMismatch
from shared.redact import known_codes

# As in shared.wire, which needs Flower; a test compares the two.
HEADER: Final = "fedslm"
PROTOCOL: Final = 1
_KIND: Final = re.compile(r"(train|evaluate|query)(\.[A-Za-z_][A-Za-z0-9_]{0,63})?")
_LONGEST_GROUP: Final = 256

Setting: TypeAlias = bool | int | float | str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A message from the server, without its content.

    Attributes:
        message_id: its name: the hash of its root object.
        run_id: which run asks.
        source: node id of the asking side; the server's own.
        kind: ``"train"``, ``"evaluate"`` or ``"query"``, or one of them with an action.
        group: the server's word for the exchange, often the round.
        created_at: server's time, in seconds since 1970.
        ttl: seconds after which nobody waits for the answer.
        source_task: the task that asks, if it says so.
        task: the task that is asked, if it says so.
    """

    message_id: str
    run_id: int
    source: int
    kind: str
    group: str
    created_at: float
    ttl: float
    source_task: int | None = None
    task: int | None = None

    @property
    def expires(self) -> float:
        """Return when nobody waits for the answer any more, in the server's time."""
        return self.created_at + self.ttl


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer, ready to be sent.

    Attributes:
        message: its head.
        tree: its objects.
    """

    message: Message = field(repr=False)
    tree: Tree = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A run as the server describes it.

    Attributes:
        run_id: its number.
        series_id: the series that it belongs to, or 0.
        bundle: SHA-256 of the app bundle that it was submitted with; this node runs none.
        config: its configuration.
    """

    run_id: int
    series_id: int
    bundle: str
    config: Mapping[str, Setting] = field(repr=False)


def read_question(message: Message, *, node_id: int) -> Question:
    """Check the head of a message.

    Raises:
        SchemaMismatch: if it is not for this node, is no instruction, or a field is absurd.
    """
    found = message.metadata
    right = (
        is_object_id(found.message_id)
        and found.run_id > 0
        and found.src_node_id > 0
        and found.dst_node_id == node_id
        and not found.reply_to_message_id
        and not message.HasField("error")
        and len(found.group_id) <= _LONGEST_GROUP
        and math.isfinite(found.created_at)
        and math.isfinite(found.ttl)
        and found.ttl > 0
    )
    if not right or _KIND.fullmatch(found.message_type) is None:
        msg = "A message has a head that no instruction to this node has."
        raise SchemaMismatch(msg)
    return Question(
        message_id=found.message_id,
        run_id=found.run_id,
        source=found.src_node_id,
        kind=found.message_type,
        group=found.group_id,
        created_at=found.created_at,
        ttl=found.ttl,
        source_task=found.src_task_id if found.HasField("src_task_id") else None,
        task=found.dst_task_id if found.HasField("dst_task_id") else None,
    )


def content_of(question: Question, tree: Tree) -> str:
    """Return the name of a question's content, after comparing its two heads.

    Raises:
        SchemaMismatch: if the object is of another message than the head, or has no content.
    """
    from google.protobuf.message import DecodeError

    root = parse(tree.contents[tree.root])
    try:
        inner = Message.FromString(bytes(root.body)).metadata
    except DecodeError as error:
        msg = "The head of a message cannot be read."
        raise SchemaMismatch(msg) from error
    same = (
        inner.run_id == question.run_id
        and inner.message_type == question.kind
        and inner.src_node_id == question.source
        and inner.group_id == question.group
    )
    if tree.root != question.message_id or not same or len(root.children) != 1:
        msg = "A message is not the one that its head says."
        raise SchemaMismatch(msg)
    return root.children[0]


def answer(question: Question, content: Tree, *, node_id: int, now: float) -> Answered:
    """Address a content to the side that asked.

    Args:
        question: what is answered.
        content: objects of a ``RecordDict``.
        node_id: this node.
        now: the server's time.
    """
    head = Metadata(
        run_id=question.run_id,
        src_node_id=node_id,
        dst_node_id=question.source,
        reply_to_message_id=question.message_id,
        group_id=question.group,
        ttl=question.expires - now,
        message_type=question.kind,
        created_at=now,
        src_task_id=question.task,
        dst_task_id=question.source_task,
    )
    body = Message(metadata=head).SerializeToString(deterministic=True)
    root = build(MESSAGE, [content.root], body)
    head.message_id = object_id(root)
    tree = Tree(root=head.message_id, contents={**content.contents, head.message_id: root})
    return Answered(message=Message(metadata=head, content=RecordDict()), tree=tree)


def failure(code: str) -> Tree:
    """Return the content of a failure: a known code and nothing else.

    Raises:
        SchemaMismatch: if the code is not one of our errors'.
    """
    if code not in known_codes():
        msg = "A failure has a code that is not known."
        raise SchemaMismatch(msg)
    record = build(CONFIG_RECORD, (), write_configs({"protocol": PROTOCOL, "failure": code}))
    named = json.dumps({HEADER: object_id(record)}).encode("ascii")
    root = build(RECORD_DICT, [object_id(record)], named)
    contents = {object_id(record): record, object_id(root): root}
    return Tree(root=object_id(root), contents=contents)


def object_tree(tree: Tree, name: str | None = None) -> ObjectTree:
    """Return the names of a checked tree as the protocol carries them."""
    name = tree.root if name is None else name
    children = parse(tree.contents[name]).children
    return ObjectTree(object_id=name, children=[object_tree(tree, child) for child in children])


def read_run(run: Run) -> RunInfo:
    """Read a run; a setting without a value is left out."""
    config: dict[str, Setting] = {}
    for key, value in run.override_config.items():
        chosen = value.WhichOneof("scalar")
        if chosen is not None:
            config[key] = getattr(value, chosen)
    return RunInfo(run_id=run.run_id, series_id=run.series_id, bundle=run.fab_hash, config=config)
