"""Answers that no honest client gives, made with Flower's own classes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from shared.wire import (
    ADAPTER,
    HEADER,
    VECTOR,
    ClientUpdate,
    Instruction,
    encode_failure,
    encode_update,
)

Reply = Callable[[Instruction], RecordDict]
NUMPY = "numpy.ndarray"
SECRET = "Jane Roe, born 1970\x1b[31m\nlevel=critical"


def honest(told: Instruction, vector: np.ndarray, stage: str = "clipped") -> RecordDict:
    """Return an update as the protocol wants it."""
    update = ClientUpdate(
        server_round=told.server_round,
        config_digest=told.config_digest,
        stage=stage,  # type: ignore[arg-type]
        vector=vector.astype(np.float32),
    )
    return encode_update(update)


def npy(array: np.ndarray, **options: Any) -> bytes:
    """Return an array as numpy writes it."""
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def with_array(array: Array) -> Reply:
    """Return a reply whose vector is replaced."""

    def reply(told: Instruction) -> RecordDict:
        records = honest(told, np.zeros(told.vector.size))
        records[ADAPTER] = ArrayRecord({VECTOR: array})
        return records

    return reply


def with_data(data: Callable[[int], bytes], dtype: str = "float32") -> Reply:
    """Return a reply whose vector has other bytes than it says."""

    def reply(told: Instruction) -> RecordDict:
        size = told.vector.size
        array = Array(dtype=dtype, shape=(size,), stype=NUMPY, data=data(size))
        return with_array(array)(told)

    return reply


def with_header(**fields: Any) -> Reply:
    """Return a reply whose header has other fields; None takes one out."""

    def reply(told: Instruction) -> RecordDict:
        records = honest(told, np.zeros(told.vector.size))
        header = dict(records[HEADER])
        header |= {name.replace("_", "-"): value for name, value in fields.items()}
        kept = {name: value for name, value in header.items() if value is not None}
        records[HEADER] = ConfigRecord(kept)  # type: ignore[arg-type]
        return records

    return reply


def with_record(name: str, record: Any) -> Reply:
    """Return a reply with one record more."""

    def reply(told: Instruction) -> RecordDict:
        records = honest(told, np.zeros(told.vector.size))
        records[name] = record
        return records

    return reply


def with_vector(values: Callable[[int], np.ndarray], stage: str = "clipped") -> Reply:
    """Return a reply in good form with any numbers."""
    return lambda told: honest(told, values(told.vector.size), stage)


def bomb() -> bytes:
    """Return an archive of one array that is a thousand times as long unpacked."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(np.zeros(4_000_000, dtype=np.float32)))
    return stream.getvalue()


def claims(shape: str) -> Callable[[int], bytes]:
    """Return an .npy file whose header claims a shape that its bytes do not have."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(16)
    return lambda size: data


def two_arrays(told: Instruction) -> RecordDict:
    """Return a reply with the vector twice, under two names."""
    records = honest(told, np.ones(told.vector.size))
    array = records[ADAPTER][VECTOR]
    records[ADAPTER] = ArrayRecord({VECTOR: array, "again": array})
    return records


def ones(size: int) -> bytes:
    """Return an honest vector's bytes."""
    return npy(np.ones(size, dtype=np.float32))


MALFORMED: dict[str, Reply] = {
    "no record": lambda told: RecordDict(),
    "no vector": lambda told: RecordDict({HEADER: honest(told, np.zeros(2))[HEADER]}),
    "no header": lambda told: RecordDict({ADAPTER: honest(told, np.zeros(2))[ADAPTER]}),
    "a header of numbers": with_record(HEADER, MetricRecord({"protocol": 1})),
    "a vector of settings": with_record(ADAPTER, ConfigRecord({VECTOR: 1.0})),
    "a record more": with_record("more", ConfigRecord({"loss": 0.1, "num_examples": 7})),
    "the same array twice": two_arrays,
    "too short": with_vector(lambda size: np.zeros(size - 1)),
    "too long": with_vector(lambda size: np.zeros(size + 1)),
    "empty": with_vector(lambda size: np.zeros(0)),
    "two dimensions": with_array(Array(np.zeros((10, 10), dtype=np.float32))),
    "float64": with_array(Array(np.zeros(100))),
    "float16": with_array(Array(np.zeros(100, dtype=np.float16))),
    "big-endian": with_array(Array(np.zeros(100, dtype=">f4"))),
    "complex": with_array(Array(np.zeros(100, dtype=np.complex64))),
    "text": with_array(Array(np.array(["x"] * 100))),
    "a type that is none": with_data(ones, dtype="\x1b[2Jfloat32"),
    "float64 that says float32": with_data(lambda size: npy(np.zeros(size))),
    "columns that say one dimension": with_data(lambda size: npy(np.zeros((size, 1), np.float32))),
    "cut off": with_data(lambda size: ones(size)[:-3]),
    "bytes behind the end": with_data(lambda size: ones(size) + b"more"),
    "no array": with_data(lambda size: b"\x00" * 4 * size),
    "nothing": with_data(lambda size: b""),
    "an archive": with_data(lambda size: bomb()),
    "a pickle": with_data(lambda size: npy(np.array([{}] * size), allow_pickle=True)),
    "a shape of 4 TB": with_data(claims("(1000000000000,)")),
    "a shape below zero": with_data(claims("(-1,)")),
    "a header that calls": with_data(claims("(__import__('os').getpid(),)")),
    "another stype": with_array(
        Array(dtype="float32", shape=(100,), stype="torch.Tensor", data=ones(100))
    ),
    "another round": with_header(server_round=99),
    "the round before": with_header(server_round=0),
    "a round in words": with_header(server_round="1"),
    "a round that is a bool": with_header(server_round=True),
    "another run": with_header(config_digest="0" * 64),
    "a digest that is long": with_header(config_digest=SECRET * 20_000),
    "another stage": with_header(stage="plain"),
    "a stage that is none": with_header(stage=SECRET),
    "another protocol": with_header(protocol=2),
    "a protocol in words": with_header(protocol=SECRET),
    "a list for a number": with_header(server_round=[1, 1]),
    "no stage": with_header(stage=None),
    "a failure of our own": lambda told: encode_failure("unexpected"),
    "a failure with text": lambda told: encode_failure(SECRET),
    "a failure that is a number": with_header(failure=7),
}
"""In a form that the protocol does not have: refused, and flagged."""

ODD: dict[str, tuple[Reply, str | None]] = {
    "nan": (with_vector(lambda size: np.full(size, np.nan)), "update-not-finite"),
    "one nan": (with_vector(lambda size: np.eye(1, size)[0] * np.nan), "update-not-finite"),
    "inf": (with_vector(lambda size: np.full(size, np.inf)), "update-not-finite"),
    "both inf": (with_vector(lambda size: np.resize([np.inf, -np.inf], size)), "update-not-finite"),
    "the largest": (with_vector(lambda size: np.full(size, 3.4e38)), "update-too-long"),
    "huge": (with_vector(lambda size: np.full(size, -1e30)), "update-too-long"),
    "just beyond the clip": (with_vector(lambda size: np.full(size, 0.06)), "update-too-long"),
    "negative zero": (with_vector(lambda size: np.full(size, -0.0)), None),
    "denormal": (with_vector(lambda size: np.full(size, 1e-45)), None),
}
"""In good form with numbers that are not: counted as zero or clipped, and flagged."""
