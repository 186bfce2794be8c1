"""The content of a message, read from Flower's objects and written as them; for the worker.

A content is a number of named records: of arrays, of settings ("configs"), of numbers ("metrics").
What is written is, byte for byte, what Flower would write, so that names (hashes) agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeGuard

from numpy.typing import NDArray

from client.fleet.limits import DEFAULT_LIMITS, Limits
from client.fleet.objects import (
    ARRAY,
    ARRAY_RECORD,
    CHUNK,
    CONFIG_RECORD,
    METRIC_RECORD,
    RECORD_DICT,
    Parsed,
    Tree,
    build,
    object_id,
    parse,
    verify,
)
from client.fleet.values import (
    ConfigValue,
    MetricValue,
    read_configs,
    read_metrics,
    write_configs,
    write_metrics,
)
from shared.errors import SchemaMismatch
from shared.npyfile import DTYPES, read_npy, write_npy

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

CHUNK_BYTES: Final = 5 << 20
_NUMPY: Final = "numpy.ndarray"
_LONGEST_SIDE: Final = 1 << 40
_ARRAY_FIELDS: Final = frozenset({"dtype", "shape", "stype", "arraychunk_ids"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The content of a message: named records, each of named values.

    Attributes:
        arrays: records of arrays.
        configs: records of settings: bool, int, float, str, bytes, or a list of one of them.
        metrics: records of numbers: int, float, or a list of one of them.
        order: names of all records as they come in the message; empty for arrays, configs, metrics.
    """

    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, ConfigValue]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, MetricValue]] = field(default_factory=dict)
    order: tuple[str, ...] = ()


def decode(tree: Tree, *, limits: Limits = DEFAULT_LIMITS) -> Record:
    """Read a content from the objects of its ``RecordDict``.

    Guarantee:
        What is allocated is bounded by the limits, whatever the objects say: an object that is
        named several times is read once, and all arrays together keep ``message_bytes``.

    Raises:
        SchemaMismatch: if an object is not what it should be, an array is not of a plain number
            type, or a shape and its bytes disagree.
    """
    tree = verify(tree, RECORD_DICT, limits=limits)
    reader = _Reader(tree, limits)
    arrays: dict[str, Arrays] = {}
    configs: dict[str, Mapping[str, ConfigValue]] = {}
    metrics: dict[str, Mapping[str, MetricValue]] = {}
    names = reader.members(tree.root)
    for name, reference in names.items():
        kind = reader.object(reference).kind
        if kind == ARRAY_RECORD:
            arrays[name] = reader.arrays(reference)
        elif kind == CONFIG_RECORD:
            configs[name] = reader.configs(reference)
        else:
            metrics[name] = reader.metrics(reference)
    return Record(arrays=arrays, configs=configs, metrics=metrics, order=tuple(names))


def encode(record: Record) -> Tree:
    """Write a content as objects.

    Raises:
        SchemaMismatch: if a value has a type that is not carried.
    """
    contents: dict[str, bytes] = {}
    order = record.order or (*record.arrays, *record.configs, *record.metrics)
    named = {name: _put_record(contents, record, name) for name in order}
    root = _put(contents, RECORD_DICT, named.values(), json.dumps(named).encode())
    return Tree(root=root, contents=contents)


class _Reader:
    """Reads the objects of one checked tree, each once."""

    def __init__(self, tree: Tree, limits: Limits) -> None:
        self._tree = tree
        self._limits = limits
        self._budget = limits.message_bytes
        self._read: dict[str, Any] = {}

    def object(self, name: str) -> Parsed:
        """Return one object, taken apart."""
        return parse(self._tree.contents[name], limits=self._limits)

    def members(self, name: str) -> dict[str, str]:
        """Read which names an object gives to its children: exactly those of its header."""
        parsed = self.object(name)
        found = _json(parsed.body)
        if not isinstance(found, dict) or len(found) > self._limits.records:
            msg = f"An object of kind {parsed.kind} does not name its members, or too many."
            raise SchemaMismatch(msg)
        members = {key: value for key, value in found.items() if isinstance(value, str)}
        if len(members) != len(found) or set(members.values()) != set(parsed.children):
            msg = f"An object of kind {parsed.kind} names other members than its header."
            raise SchemaMismatch(msg)
        return members

    def arrays(self, name: str) -> Arrays:
        """Read a record of arrays."""
        if name not in self._read:
            members = self.members(name)
            self._read[name] = {key: self._array(member) for key, member in members.items()}
        return dict(self._read[name])

    def configs(self, name: str) -> Mapping[str, ConfigValue]:
        """Read a record of settings."""
        if name not in self._read:
            self._read[name] = read_configs(self.object(name).body, self._limits)
        return dict(self._read[name])

    def metrics(self, name: str) -> Mapping[str, MetricValue]:
        """Read a record of numbers."""
        if name not in self._read:
            self._read[name] = read_metrics(self.object(name).body, self._limits)
        return dict(self._read[name])

    def _array(self, name: str) -> NDArray[Any]:
        """Read one array."""
        if name not in self._read:
            parsed = self.object(name)
            dtype, shape, pieces = _array_header(parsed, self._limits)
            chunks = [self.object(parsed.children[piece]).body for piece in pieces]
            self._budget -= sum(map(len, chunks))
            if self._budget < 0:
                msg = "The arrays of a message are larger than this node takes."
                raise SchemaMismatch(msg, hint="Raise max_message_mb in node.toml.")
            data = chunks[0] if len(chunks) == 1 else memoryview(b"".join(chunks))
            self._read[name] = read_npy(data, dtype=dtype, shape=shape)
        found: NDArray[Any] = self._read[name]
        return found


def _array_header(parsed: Parsed, limits: Limits) -> tuple[str, tuple[int, ...], list[int]]:
    """Read what an array says about itself: dtype, shape, which chunks in which order."""
    found = _json(parsed.body)
    if not isinstance(found, dict) or set(found) != _ARRAY_FIELDS:
        msg = f"An array does not name {', '.join(sorted(_ARRAY_FIELDS))}."
        raise SchemaMismatch(msg)
    dtype, shape, pieces = found["dtype"], found["shape"], found["arraychunk_ids"]
    if not isinstance(dtype, str) or dtype not in DTYPES or found["stype"] != _NUMPY:
        msg = "An array is of a type that is not taken."
        raise SchemaMismatch(msg, hint=f"Expected one of {', '.join(DTYPES)}.")
    if not _naturals(shape, below=_LONGEST_SIDE) or len(shape) > limits.dimensions:
        msg = "An array has no shape that is taken."
        raise SchemaMismatch(msg)
    count = len(parsed.children)
    if not _naturals(pieces, below=count) or set(pieces) != set(range(count)):
        msg = "An array does not say how its chunks follow each other."
        raise SchemaMismatch(msg)
    if not 0 < len(pieces) <= limits.objects:
        msg = "An array has no chunks, or more than are taken."
        raise SchemaMismatch(msg)
    return dtype, tuple(shape), pieces


def _naturals(values: object, *, below: int) -> TypeGuard[list[int]]:
    """Tell whether a value is a list of whole numbers from 0 to below a limit."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < below for v in values)


def _json(body: memoryview) -> object:
    """Read JSON; a name may come once."""
    try:
        return json.loads(bytes(body), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        msg = "The body of an object is not the JSON that it should be."
        raise SchemaMismatch(msg) from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a dictionary; a second value for one name is an error."""
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a name comes twice"
        raise ValueError(msg)
    return found


def _refuse(constant: str) -> object:
    """Refuse NaN and the infinities, which are not JSON."""
    raise ValueError(constant)


def _put(
    contents: dict[str, bytes], kind: str, members: Iterable[str], body: bytes | memoryview
) -> str:
    """Write an object with its members, each once in its header; return its name."""
    children: Sequence[str] = list(dict.fromkeys(members))
    content = build(kind, children, body)
    name = object_id(content)
    contents[name] = content
    return name


def _put_record(contents: dict[str, bytes], record: Record, name: str) -> str:
    """Write one record and what it is made of."""
    if name in record.arrays:
        members = {key: _put_array(contents, value) for key, value in record.arrays[name].items()}
        return _put(contents, ARRAY_RECORD, members.values(), json.dumps(members).encode())
    if name in record.configs:
        return _put(contents, CONFIG_RECORD, (), write_configs(record.configs[name]))
    return _put(contents, METRIC_RECORD, (), write_metrics(record.metrics[name]))


def _put_array(contents: dict[str, bytes], array: NDArray[Any]) -> str:
    """Write an array in chunks."""
    data = memoryview(write_npy(array))
    pieces = [
        _put(contents, CHUNK, (), data[start : start + CHUNK_BYTES])
        for start in range(0, len(data), CHUNK_BYTES)
    ]
    children = list(dict.fromkeys(pieces))
    header = {
        "dtype": array.dtype.name,
        "shape": array.shape,
        "stype": _NUMPY,
        "arraychunk_ids": [children.index(piece) for piece in pieces],
    }
    return _put(contents, ARRAY, children, json.dumps(header).encode())
