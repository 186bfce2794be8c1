"""Contents: Flower writes what we read and reads what we write, name for name."""

from __future__ import annotations

import json
import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.fleet.limits import Limits
from client.fleet.objects import ARRAY, ARRAY_RECORD, CHUNK, RECORD_DICT, Tree, build, object_id
from client.fleet.records import Record, decode, encode
from shared.errors import SchemaMismatch
from shared.npyfile import DTYPES, read_npy, write_npy
from tests.client.fleet.test_objects import flower_tree

NAMES = st.text(min_size=1, max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)
INTS = INT64 | st.integers(2**63, 2**64 - 1)
FLOATS = st.floats(allow_nan=False)
METRICS = INTS | FLOATS | st.lists(INT64, max_size=4) | st.lists(FLOATS, max_size=4)
CONFIGS = (
    METRICS
    | st.booleans()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.lists(st.booleans(), max_size=3)
    | st.lists(st.text(max_size=4), max_size=3)
    | st.lists(st.binary(max_size=4), max_size=3)
)
ARRAYS = hnp.arrays(
    dtype=st.sampled_from(sorted(DTYPES)).map(np.dtype),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    arrays, configs, metrics = {}, {}, {}
    for name in names:
        kind = draw(st.sampled_from("acm"))
        if kind == "a":
            arrays[name] = draw(st.dictionaries(NAMES, ARRAYS, max_size=3))
        elif kind == "c":
            configs[name] = draw(st.dictionaries(NAMES, CONFIGS, max_size=4))
        else:
            metrics[name] = draw(st.dictionaries(NAMES, METRICS, max_size=4))
    return Record(arrays=arrays, configs=configs, metrics=metrics, order=tuple(names))


def as_flower(record: Record) -> RecordDict:
    """Return the same content in Flower's classes."""
    found: dict[str, Any] = {}
    for name in record.order:
        if name in record.arrays:
            members = record.arrays[name].items()
            found[name] = ArrayRecord({key: Array(np.asarray(value)) for key, value in members})
        elif name in record.configs:
            found[name] = ConfigRecord(dict(record.configs[name]))
        else:
            found[name] = MetricRecord(dict(record.metrics[name]))
    return RecordDict(found)


def same(mine: Record, theirs: Record) -> bool:
    """Compare two contents, arrays by type, shape and bytes."""
    if (mine.order, mine.configs, mine.metrics) != (theirs.order, theirs.configs, theirs.metrics):
        return False
    return {n: _bytes(r) for n, r in mine.arrays.items()} == {
        n: _bytes(r) for n, r in theirs.arrays.items()
    }


def _bytes(arrays: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {key: (a.dtype.str, a.shape, a.tobytes()) for key, a in arrays.items()}


@given(records())
@settings(max_examples=60)
def test_flower_writes_the_same_objects(record: Record) -> None:
    ours, theirs = encode(record), flower_tree(as_flower(record))
    assert ours.root == theirs.root
    assert dict(ours.contents) == dict(theirs.contents)


@given(records())
@settings(max_examples=60)
def test_what_was_written_is_read(record: Record) -> None:
    assert same(decode(encode(record)), record)
    assert same(decode(flower_tree(as_flower(record))), record)


def test_flower_reads_what_was_written() -> None:
    record = Record(
        arrays={"adapter": {"vector": np.arange(5, dtype=np.float32)}},
        configs={"fedslm": {"protocol": 1, "ok": True, "payload": b"\0\xff"}},
        metrics={"m": {"loss": [1.5, 2.5]}},
        order=("fedslm", "adapter", "m"),
    )
    tree = encode(record)
    found: Any = inflate_object_from_contents(tree.root, dict(tree.contents))
    assert list(found) == ["fedslm", "adapter", "m"]
    assert found["adapter"]["vector"].numpy().tolist() == [0, 1, 2, 3, 4]
    assert dict(found["fedslm"]) == {"protocol": 1, "ok": True, "payload": b"\0\xff"}
    assert found["m"]["loss"] == [1.5, 2.5]


def test_a_large_array_goes_in_chunks_and_equal_chunks_once() -> None:
    vector = np.zeros(4_000_000, dtype=np.float32)
    record = Record(arrays={"a": {"v": vector}}, order=("a",))
    tree = encode(record)
    assert tree.root == as_flower(record).object_id
    chunks = [c for c in tree.contents.values() if c.startswith(CHUNK.encode())]
    assert len(chunks) == 3  # the header's chunk, a repeated one of zeros, the rest
    read = decode(tree).arrays["a"]["v"]
    assert read.shape == vector.shape
    assert not read.any()
    assert not read.flags.writeable


def test_columns_first_and_no_dimension_are_read() -> None:
    grid = np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3))
    scalar = np.array(7.0)
    content = RecordDict({"a": ArrayRecord({"g": Array(grid), "s": Array(scalar)})})
    read = decode(flower_tree(content)).arrays["a"]
    assert read["g"].tolist() == grid.tolist()
    assert (read["s"].shape, float(read["s"])) == ((), 7.0)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([1j]),
        np.array([1.0], dtype=">f4"),
        np.array(["2020"], dtype="datetime64[Y]"),
        np.zeros(1, dtype=[("a", "f4")]),
    ],
    ids=["object", "text", "complex", "big-endian", "time", "fields"],
)
def test_an_array_of_another_type_is_not_written(array: Any) -> None:
    with pytest.raises(SchemaMismatch, match="dtype"):
        encode(Record(arrays={"a": {"v": array}}))


@pytest.mark.parametrize(
    "value",
    [None, object(), 2**64, -(2**63) - 1, [1, 2.0], [1, "a"], [2**63, -1], [True, 1], (1,), {}],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)
def test_a_value_of_another_type_is_not_written(value: Any) -> None:
    with pytest.raises(SchemaMismatch):
        encode(Record(configs={"c": {"v": value}}))


@pytest.mark.parametrize("value", ["text", b"bytes", True, ["a"], [True]], ids=repr)
def test_a_metric_is_a_number(value: Any) -> None:
    with pytest.raises(SchemaMismatch):
        encode(Record(metrics={"m": {"v": value}}))


def with_array(header: Any, *chunks: bytes, children: int | None = None) -> Tree:
    """Return a content of one array with a header and chunks of an attacker's choice."""
    pieces = [build(CHUNK, (), chunk) for chunk in chunks]
    names = list(dict.fromkeys(map(object_id, pieces)))[:children]
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    array = build(ARRAY, names, body)
    record = build(ARRAY_RECORD, [object_id(array)], json.dumps({"v": object_id(array)}).encode())
    root = build(RECORD_DICT, [object_id(record)], json.dumps({"a": object_id(record)}).encode())
    contents = {object_id(o): o for o in (*pieces, array, record, root)}
    return Tree(root=object_id(root), contents=contents)


GOOD = {"dtype": "float32", "shape": [2], "stype": "numpy.ndarray", "arraychunk_ids": [0]}
FILE = write_npy(np.array([1.0, 2.0], dtype=np.float32))


def test_the_honest_array_is_read() -> None:
    assert decode(with_array(GOOD, FILE)).arrays["a"]["v"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "object"},
        {"dtype": "bfloat16"},
        {"dtype": 3},
        {"dtype": "float64"},
        {"shape": [3]},
        {"shape": [-1]},
        {"shape": [2.0]},
        {"shape": [True, 2]},
        {"shape": "2"},
        {"shape": [1] * 8 + [2]},
        {"shape": [2**62, 4]},
        {"stype": "pickle"},
        {"arraychunk_ids": []},
        {"arraychunk_ids": [1]},
        {"arraychunk_ids": [-1]},
        {"arraychunk_ids": [0, 0]},
        {"arraychunk_ids": [False]},
        {"more": 1},
    ],
    ids=str,
)
def test_an_array_that_lies_about_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaMismatch):
        decode(with_array({**GOOD, **change}, FILE))


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"dtype": NaN}', b'{"a": 1, "a": 2}', b"\xff"],
    ids=lambda header: repr(header[:20]),
)
def test_a_body_that_is_no_json_is_refused(header: bytes) -> None:
    with pytest.raises(SchemaMismatch):
        decode(with_array(header, FILE))


def pickled() -> bytes:
    """Return a file that numpy would unpickle if it were allowed to."""
    stream = BytesIO()
    np.save(stream, np.array([{"a": 1}, {"b": 2}], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "file",
    [
        pickled(),
        b"",
        FILE[:20],
        FILE[:-1],
        FILE + b"x",
        FILE.replace(b"\x01\x00v", b"\x03\x00v"),
        FILE.replace(b"(2,)", b"(3,)"),
        FILE.replace(b"<f4", b"|O8"),
        FILE.replace(b"'fortran_order': False", b"'fortran_order':__import__"),
        FILE.replace(b"NUMPY", b"NUMPX"),
    ],
)
def test_a_file_that_is_no_plain_array_is_refused(file: bytes) -> None:
    with pytest.raises(SchemaMismatch):
        decode(with_array(GOOD, file))


@given(st.binary(max_size=120), st.integers(0, 140), st.sampled_from(sorted(DTYPES)))
@settings(max_examples=200)
def test_any_bytes_are_an_array_or_are_refused(data: bytes, start: int, dtype: str) -> None:
    damaged = FILE[:start] + data
    try:
        found = read_npy(memoryview(damaged), dtype=dtype, shape=(2,))
    except SchemaMismatch:
        return
    assert (found.dtype.name, found.shape) == (dtype, (2,))


def test_a_chunk_that_is_named_often_does_not_fill_memory() -> None:
    big = b"\0" * (4 << 20)
    header = {**GOOD, "arraychunk_ids": [0, *[1] * 4000], "shape": [4000 << 20]}
    with pytest.raises(SchemaMismatch, match="larger"):
        decode(with_array(header, FILE, big))


def test_a_record_that_is_named_often_is_read_once() -> None:
    record = as_flower(Record(arrays={"a": {"v": np.zeros(1000)}}, order=("a",)))
    tree = flower_tree(record)
    name = record["a"].object_id
    root = build(
        RECORD_DICT, [name], json.dumps(dict.fromkeys(map(str, range(500)), name)).encode()
    )
    contents = {**tree.contents, object_id(root): root}
    limits = Limits(message_bytes=100_000)
    read = decode(Tree(root=object_id(root), contents=contents), limits=limits)
    assert len({id(member["v"]) for member in read.arrays.values()}) == 1


def test_names_must_be_those_of_the_header() -> None:
    config = build("ConfigRecord", (), b"")
    other = build("MetricRecord", (), b"")
    for names in ({}, {"a": object_id(other)}, {"a": 1}, {"a": object_id(config), "b": "x"}):
        root = build(RECORD_DICT, [object_id(config)], json.dumps(names).encode())
        contents = {object_id(o): o for o in (config, other, root)}
        with pytest.raises(SchemaMismatch):
            decode(Tree(root=object_id(root), contents=contents))


@given(st.binary(max_size=80))
@settings(max_examples=200)
def test_any_bytes_are_settings_or_are_refused(body: bytes) -> None:
    record = build("ConfigRecord", (), body)
    root = build(RECORD_DICT, [object_id(record)], json.dumps({"c": object_id(record)}).encode())
    tree = Tree(root=object_id(root), contents={object_id(o): o for o in (record, root)})
    try:
        found = decode(tree)
    except SchemaMismatch:
        return
    for value in found.configs["c"].values():
        assert isinstance(value, bool | int | float | str | bytes | list)


def test_too_many_values_are_refused() -> None:
    record = Record(configs={"c": {str(i): i for i in range(20)}})
    with pytest.raises(SchemaMismatch, match="more values"):
        decode(encode(record), limits=Limits(records=19))


def test_not_a_number_is_carried() -> None:
    found = decode(encode(Record(metrics={"m": {"v": math.nan}})))
    value = found.metrics["m"]["v"]
    assert isinstance(value, float)
    assert math.isnan(value)
