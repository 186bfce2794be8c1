"""Settings and numbers of a message: Python values to and from Flower's ``*RecordValue``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from google.protobuf.message import DecodeError

from client.fleet.fleet_pb2 import (
    BoolList,
    BytesList,
    ConfigRecord,
    ConfigRecordValue,
    DoubleList,
    MetricRecord,
    MetricRecordValue,
    SintList,
    StringList,
    UintList,
)
from client.fleet.limits import Limits
from shared.errors import SchemaMismatch

ConfigValue: TypeAlias = (
    bool
    | int
    | float
    | str
    | bytes
    | list[bool]
    | list[int]
    | list[float]
    | list[str]
    | list[bytes]
)
MetricValue: TypeAlias = int | float | list[int] | list[float]

_INT64: Final = (1 << 63) - 1
_UINT64: Final = (1 << 64) - 1
# type -> field of one value, field of a list, class of a list
_Kinds: TypeAlias = Sequence[tuple[type, str, str, type[Any]]]
# The first kind of a sequence takes the empty list, as in Flower.
_CONFIG: Final[_Kinds] = (
    (bool, "flag", "bool_list", BoolList),
    (int, "sint64", "sint_list", SintList),
    (float, "double", "double_list", DoubleList),
    (str, "string", "string_list", StringList),
    (bytes, "data", "bytes_list", BytesList),
)
_METRIC: Final[_Kinds] = (
    (float, "double", "double_list", DoubleList),
    (int, "sint64", "sint_list", SintList),
)


def write_configs(values: Mapping[str, ConfigValue]) -> bytes:
    """Write settings as the body of a ``ConfigRecord``.

    Raises:
        SchemaMismatch: for a value that is no bool, int of 64 bits, float, str, bytes, nor a list
            of one of them.
    """
    return ConfigRecord(
        items=[
            ConfigRecord.Item(key=key, value=ConfigRecordValue(**_field(_CONFIG, value)))
            for key, value in values.items()
        ]
    ).SerializeToString()


def write_metrics(values: Mapping[str, MetricValue]) -> bytes:
    """Write numbers as the body of a ``MetricRecord``.

    Raises:
        SchemaMismatch: for a value that is no int of 64 bits, float, nor a list of one of them.
    """
    return MetricRecord(
        items=[
            MetricRecord.Item(key=key, value=MetricRecordValue(**_field(_METRIC, value)))
            for key, value in values.items()
        ]
    ).SerializeToString()


def read_configs(body: memoryview, limits: Limits) -> dict[str, ConfigValue]:
    """Read the body of a ``ConfigRecord``.

    Raises:
        SchemaMismatch: if it is malformed, names a value twice, or holds too many.
    """
    return _read(ConfigRecord(), body, limits)


def read_metrics(body: memoryview, limits: Limits) -> dict[str, MetricValue]:
    """Read the body of a ``MetricRecord``; raises as :func:`read_configs`."""
    return _read(MetricRecord(), body, limits)


def _read(record: ConfigRecord | MetricRecord, body: memoryview, limits: Limits) -> dict[str, Any]:
    """Read the values of a record."""
    try:
        record.ParseFromString(bytes(body))
    except DecodeError as error:
        msg = "A record cannot be read."
        raise SchemaMismatch(msg) from error
    if len(record.items) > limits.records:
        msg = "A record holds more values than are taken."
        raise SchemaMismatch(msg)
    found: dict[str, Any] = {}
    for item in record.items:
        chosen = item.value.WhichOneof("value")
        if chosen is None or item.key in found:
            msg = "A record holds a name twice or a name without a value."
            raise SchemaMismatch(msg)
        value = getattr(item.value, chosen)
        found[item.key] = list(value.vals) if chosen.endswith("_list") else value
    return found


def _field(kinds: _Kinds, value: object) -> dict[str, Any]:
    """Return which field carries a value, and what it is set to."""
    for kind, single, several, lists in kinds:
        if type(value) is kind:
            return {"uint64" if _unsigned([value]) else single: value}
        if isinstance(value, list) and all(type(item) is kind for item in value):
            return (
                {"uint_list": UintList(vals=value)}
                if _unsigned(value)
                else {several: lists(vals=value)}
            )
    msg = f"A value of type {type(value).__name__} cannot be sent."
    raise SchemaMismatch(msg, hint="Expected a number, or in a config bool, str, bytes; or a list.")


def _unsigned(values: Sequence[object]) -> bool:
    """Tell whether only an unsigned field holds some whole numbers; refuse what no field holds."""
    numbers = [value for value in values if type(value) is int]
    if not numbers or max(numbers) <= _INT64:
        fits = not numbers or min(numbers) >= -_INT64 - 1
    else:
        fits = min(numbers) >= 0 and max(numbers) <= _UINT64
    if not fits:
        msg = "A whole number, or a list of them, does not fit in 64 bits."
        raise SchemaMismatch(msg)
    return bool(numbers) and max(numbers) > _INT64
