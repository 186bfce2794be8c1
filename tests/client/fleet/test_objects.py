"""Objects: Flower's own code is the oracle for what is written; hostile bytes for what is read."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from hypothesis import given
from hypothesis import strategies as st

from client.fleet.limits import Limits
from client.fleet.objects import (
    CHUNK,
    CONFIG_RECORD,
    MESSAGE,
    RECORD_DICT,
    Tree,
    build,
    collect,
    is_object_id,
    object_id,
    parse,
    under,
    verify,
)
from shared.errors import SchemaMismatch

SMALL = Limits(message_bytes=2000, object_bytes=500, objects=6)


def flower_tree(content: RecordDict) -> Tree:
    """Return the objects that Flower makes of a content."""
    nested = get_all_nested_objects(content)
    return Tree(root=content.object_id, contents={k: v.deflate() for k, v in nested.items()})


def chain(*kinds: str) -> Tree:
    """Return a tree of one object of each kind, each the only child of the one before."""
    contents: dict[str, bytes] = {}
    names: list[str] = []
    for kind in reversed(kinds):
        content = build(kind, names, b"body")
        names = [object_id(content)]
        contents[names[0]] = content
    return Tree(root=names[0], contents=contents)


def test_an_object_is_written_and_named_as_flower_does() -> None:
    record = ConfigRecord({"a": 1})
    written = record.deflate()
    parsed = parse(written)
    assert (parsed.kind, parsed.children) == (CONFIG_RECORD, ())
    assert build(parsed.kind, parsed.children, parsed.body) == written
    assert object_id(written) == get_object_id(written) == record.object_id


def test_a_tree_of_flowers_is_collected_children_first() -> None:
    theirs = flower_tree(RecordDict({"b": ConfigRecord({"x": 1.0}), "a": ConfigRecord({"x": 2.0})}))
    asked: list[str] = []

    def fetch(name: str) -> bytes:
        asked.append(name)
        return theirs.contents[name]

    tree = collect(theirs.root, RECORD_DICT, fetch)
    assert tree == verify(theirs, RECORD_DICT)
    assert dict(tree.contents) == dict(theirs.contents)
    assert sorted(asked) == sorted(theirs.contents)
    assert list(tree.contents)[-1] == tree.root
    assert tree.size == sum(len(content) for content in theirs.contents.values())


def test_an_object_that_is_named_twice_is_fetched_once() -> None:
    leaf = build("ConfigRecord", (), b"")
    root = build("RecordDict", [object_id(leaf)], b"{}")
    contents = {object_id(leaf): leaf, object_id(root): root}
    tree = verify(Tree(root=object_id(root), contents=contents), RECORD_DICT)
    assert len(tree.contents) == 2


def test_a_part_of_a_tree_holds_what_is_under_it() -> None:
    tree = chain("Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk")
    content = parse(tree.contents[tree.root]).children[0]
    part = under(tree, content)
    assert set(part.contents) == set(tree.contents) - {tree.root}
    assert verify(part, RECORD_DICT) == part


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ArrayChunk  0",
        b"ArrayChunk 0\0",
        b"ArrayChunk  1\0",
        b"ArrayChunk  01\0x",
        b"ArrayChunk  +1\0x",
        b"ArrayChunk  -1\0",
        b"ArrayChunk   0\0",
        b"arraychunk  0\0",
        b"CustomDataClass  0\0",
        "ArrayChunk é 0\0".encode(),
        b"RecordDict x 0\0",
        b"RecordDict %s,%s 0\0" % (b"a" * 64, b"a" * 64),
        b"RecordDict %s 0\0" % (b"A" * 64),
        b"RecordDict %s, 0\0" % (b"a" * 64),
    ],
)
def test_a_malformed_object_is_refused(content: bytes) -> None:
    with pytest.raises(SchemaMismatch):
        parse(content)


@given(st.binary(max_size=400))
def test_any_bytes_are_an_object_or_are_refused(content: bytes) -> None:
    try:
        parsed = parse(content)
    except SchemaMismatch:
        return
    assert build(parsed.kind, parsed.children, parsed.body) == content


@given(
    kind=st.sampled_from(["Message", "RecordDict", "Array", "ArrayChunk"]),
    children=st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), unique=True),
    body=st.binary(max_size=100),
    cut=st.integers(0, 300),
    put=st.binary(max_size=3),
)
def test_a_damaged_object_is_refused_or_reads_as_it_is_written(
    kind: str, children: list[str], body: bytes, cut: int, put: bytes
) -> None:
    content = build(kind, children, body)
    parsed = parse(content)
    assert (parsed.kind, list(parsed.children), bytes(parsed.body)) == (kind, children, body)
    damaged = content[:cut] + put + content[cut + 1 :]
    try:
        again = parse(damaged)
    except SchemaMismatch:
        return
    assert build(again.kind, again.children, again.body) == damaged


@pytest.mark.parametrize(
    "kinds",
    [
        ("Message", "ArrayRecord"),
        ("Message", "Message"),
        ("Message", "RecordDict", "RecordDict"),
        ("Message", "RecordDict", "Array"),
        ("Message", "RecordDict", "ConfigRecord", "ArrayChunk"),
        ("Message", "RecordDict", "ArrayRecord", "Array", "Array"),
        ("Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "ArrayChunk"),
        ("RecordDict", "ConfigRecord"),
    ],
    ids="-".join,
)
def test_an_object_stands_only_where_its_kind_belongs(kinds: tuple[str, ...]) -> None:
    with pytest.raises(SchemaMismatch):
        verify(chain(*kinds), MESSAGE)


def test_an_object_under_two_kinds_of_parents_is_refused() -> None:
    chunk = build("ArrayChunk", (), b"x")
    array = build("Array", [object_id(chunk)], b"{}")
    record = build("ArrayRecord", [object_id(array), object_id(chunk)], b"{}")
    root = build("RecordDict", [object_id(record)], b"{}")
    contents = {object_id(o): o for o in (chunk, array, record, root)}
    with pytest.raises(SchemaMismatch):
        verify(Tree(root=object_id(root), contents=contents), RECORD_DICT)


def test_a_changed_or_missing_object_is_refused() -> None:
    tree = chain("Message", "RecordDict", "ConfigRecord")
    for name in tree.contents:
        changed = {**tree.contents, name: tree.contents[name] + b"x"}
        with pytest.raises(SchemaMismatch, match="name"):
            verify(Tree(root=tree.root, contents=changed), MESSAGE)
        missing = {key: value for key, value in tree.contents.items() if key != name}
        with pytest.raises(SchemaMismatch, match="missing"):
            verify(Tree(root=tree.root, contents=missing), MESSAGE)


def test_fetching_stops_at_a_bound() -> None:
    leaves = [build("ConfigRecord", (), bytes([i]) * 100) for i in range(200)]
    root = build("RecordDict", [object_id(leaf) for leaf in leaves[:5]], b"{}")
    contents = {object_id(o): o for o in (*leaves, root)}
    fetched: list[str] = []

    def fetch(name: str) -> bytes:
        fetched.append(name)
        return contents[name]

    assert len(collect(object_id(root), RECORD_DICT, fetch, limits=SMALL).contents) == 6
    for limits in (
        Limits(message_bytes=2000, object_bytes=500, objects=5),
        Limits(message_bytes=700, object_bytes=500, objects=6),
        Limits(message_bytes=2000, object_bytes=100, objects=6),
    ):
        fetched.clear()
        with pytest.raises(SchemaMismatch):
            collect(object_id(root), RECORD_DICT, fetch, limits=limits)
        assert len(fetched) <= 6


@pytest.mark.parametrize("name", ["", "a" * 63, "A" * 64, "g" * 64, "a" * 65, "a" * 64 + "\n"])
def test_only_a_hash_is_a_name(name: str) -> None:
    assert not is_object_id(name)
    assert is_object_id(object_id(name.encode()))


def test_a_chunk_of_flowers_reads_back() -> None:
    import numpy as np
    from flwr.app import Array

    array: Any = Array(np.arange(3, dtype=np.float32))
    pieces = get_all_nested_objects(array)
    kinds = {parse(piece.deflate()).kind for piece in pieces.values()}
    assert kinds == {CHUNK, "Array"}
