"""The codec: what goes in comes out, and everything else is refused with a code."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.errors import ClientFailed, SchemaMismatch
from shared.wire import (
    ADAPTER,
    HEADER,
    VECTOR,
    ClientUpdate,
    Instruction,
    Introduction,
    Measurement,
    decode_instruction,
    decode_introduction,
    decode_measurement,
    decode_update,
    encode_failure,
    encode_instruction,
    encode_introduction,
    encode_measurement,
    encode_update,
    payload_bytes,
)

vectors = arrays(
    np.float32,
    st.integers(1, 50),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


def update(vector: np.ndarray, server_round: int = 3) -> ClientUpdate:
    return ClientUpdate(
        server_round=server_round, config_digest="c", stage="clipped", vector=vector
    )


def decode(records: RecordDict, *, size: int, server_round: int = 3) -> ClientUpdate:
    return decode_update(
        records, server_round=server_round, config_digest="c", stage="clipped", size=size
    )


@given(vector=vectors, server_round=st.integers(0, 2**31))
def test_instructions_round_trip(vector: np.ndarray, server_round: int) -> None:
    sent = Instruction(
        run_id="r", server_round=server_round, config_digest="c", plan_digest="p", vector=vector
    )
    got = decode_instruction(encode_instruction(sent))
    assert np.array_equal(got.vector, vector, equal_nan=True)
    assert got.vector.dtype == np.float32
    assert (got.run_id, got.server_round, got.config_digest, got.plan_digest) == (
        "r",
        server_round,
        "c",
        "p",
    )


@given(vector=vectors)
def test_updates_round_trip_with_exactly_one_array(vector: np.ndarray) -> None:
    records = encode_update(update(vector))
    assert list(records) == [HEADER, ADAPTER]
    assert list(records[ADAPTER]) == [VECTOR]
    assert np.array_equal(decode(records, size=vector.size).vector, vector, equal_nan=True)
    assert payload_bytes(records) < 4 * vector.size + 600


def test_an_update_names_nothing_but_round_digest_and_stage() -> None:
    """Peers send num_examples and losses in clear beside a protected update."""
    header = encode_update(update(np.zeros(2, dtype=np.float32)))[HEADER]
    assert set(header) == {"protocol", "server-round", "config-digest", "stage"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", 2),
        ("server-round", 4),
        ("server-round", "3"),
        ("config-digest", "other"),
        ("stage", "plain"),
        ("stage", 1),
    ],
)
def test_an_update_of_something_else_is_refused(field: str, value: str | int) -> None:
    records = encode_update(update(np.zeros(2, dtype=np.float32)))
    header = records[HEADER]
    assert isinstance(header, ConfigRecord)
    header[field] = value
    with pytest.raises(SchemaMismatch):
        decode(records, size=2)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, dtype=np.float32),
        np.zeros((1, 2), dtype=np.float32),
        np.zeros(2, dtype=np.float64),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(array: np.ndarray) -> None:
    records = encode_update(update(np.zeros(2, dtype=np.float32)))
    records[ADAPTER] = ArrayRecord({VECTOR: Array(array)})
    with pytest.raises(SchemaMismatch):
        decode(records, size=2)


def test_missing_parts_are_refused() -> None:
    with pytest.raises(SchemaMismatch, match="no fedslm header"):
        decode_instruction(RecordDict())
    with pytest.raises(SchemaMismatch, match="no fedslm header"):
        decode_instruction(RecordDict({HEADER: ArrayRecord()}))
    header = encode_update(update(np.zeros(2, dtype=np.float32)))[HEADER]
    with pytest.raises(SchemaMismatch, match="no adapter vector"):
        decode(RecordDict({HEADER: header}), size=2)
    with pytest.raises(SchemaMismatch, match="run-id"):
        decode_instruction(RecordDict({HEADER: ConfigRecord({"protocol": 1})}))


def test_failures_carry_a_known_code_only() -> None:
    with pytest.raises(ClientFailed, match="'no-usable-text'"):
        decode(encode_failure("no-usable-text"), size=2)
    with pytest.raises(ClientFailed, match="'unexpected'") as caught:
        decode(encode_failure("patient Ada has the flu"), size=2)
    assert "Ada" not in str(caught.value)
    with pytest.raises(ClientFailed, match="'unexpected'"):
        decode_measurement(encode_failure("patient Ada"))


def test_measurements_and_introductions_round_trip() -> None:
    measurement = Measurement(loss=1.5, tokens=7)
    assert decode_measurement(encode_measurement(measurement)) == measurement
    assert decode_introduction(encode_introduction(Introduction(client=4))).client == 4
    with pytest.raises(SchemaMismatch):
        decode_introduction(encode_measurement(measurement))
