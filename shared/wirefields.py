"""The fields and arrays of a message, each read as exactly one type."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from shared.errors import SchemaMismatch
from shared.lora import Vector
from shared.npyfile import read_npy

PROTOCOL: Final = 1
HEADER: Final = "fedslm"
ADAPTER: Final = "adapter"
REFERENCE: Final = "reference"
VECTOR: Final = "vector"
_SHOWN: Final = 64

T = TypeVar("T")


def header_of(records: RecordDict, *, also: tuple[str, ...] = ()) -> ConfigRecord:
    """Return the header of a message of our protocol version; ``also`` names further records."""
    header = records.get(HEADER)
    if not isinstance(header, ConfigRecord):
        msg = "A message has no fedslm header."
        raise SchemaMismatch(msg, hint="Is the other side running fedslm?")
    if not set(records) <= {HEADER, ADAPTER, *also}:
        msg = f"A message has {len(records)} records, expected {HEADER!r} and {ADAPTER!r} at most."
        raise SchemaMismatch(msg)
    expect("protocol", header.get("protocol"), PROTOCOL)
    return header


def field_of(header: ConfigRecord, name: str, kind: type[T]) -> T:
    """Return a header field of exactly one type."""
    value = header.get(name)
    if not isinstance(value, kind) or type(value) is not kind:
        msg = f"Header field {name!r} has type {type(value).__name__}, expected {kind.__name__}."
        raise SchemaMismatch(msg)
    return value


def vector_of(records: RecordDict, name: str = ADAPTER) -> Vector:
    """Return the flat float32 vector of a message, a view of its bytes that cannot be written."""
    return array_of(records, "float32", name)


def array_of(records: RecordDict, dtype: str, name: str = ADAPTER) -> NDArray[Any]:
    """Return the only array of a message, of one dimension and a given type, as a view."""
    record = records.get(name)
    array = record.get(VECTOR) if isinstance(record, ArrayRecord) else None
    if array is None or len(records[name]) != 1:
        msg = "A message has no adapter vector, or other arrays beside it."
        raise SchemaMismatch(msg)
    if (array.dtype, array.stype, len(array.shape)) != (dtype, "numpy.ndarray", 1):
        found = shown(array.dtype)
        msg = f"Found an adapter of dtype {found}, expected {dtype} in one dimension."
        raise SchemaMismatch(msg)
    # numpy's own reader raises what it likes, unpacks archives and believes the header's shape.
    return read_npy(memoryview(array.data).toreadonly(), dtype=dtype, shape=array.shape)


def expect(name: str, found: object, expected: object) -> None:
    """Refuse a value other than the expected one."""
    if found != expected:
        msg = f"Found {name}={shown(found)}, expected {expected!r}."
        raise SchemaMismatch(msg, hint="Server and client must run the same scenario and version.")


def shown(value: object) -> str:
    """Return how a value of somebody else is repeated: one short line of printable ASCII."""
    if isinstance(value, str):
        return ascii(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    plain = value is None or isinstance(value, bool | int | float)
    return repr(value) if plain else type(value).__name__
