"""The codec: what goes in comes out, and everything else is refused with a code."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.errors import ClientFailed, SchemaMismatch
from shared.privacy.ledger_signing import SignedHead
from shared.wire import (
    ADAPTER,
    HEADER,
    PHASES,
    VECTOR,
    ClientUpdate,
    Instruction,
    Introduction,
    Measurement,
    Phase,
    PhaseCall,
    PhaseReply,
    decode_instruction,
    decode_introduction,
    decode_measurement,
    decode_phase_call,
    decode_phase_reply,
    decode_update,
    encode_failure,
    encode_instruction,
    encode_introduction,
    encode_measurement,
    encode_phase_call,
    encode_phase_reply,
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


def signed_head() -> SignedHead:
    return SignedHead(seq=7, hash="a" * 64, public_key="b" * 64, signature="c" * 128)


def instruction(**changes: object) -> Instruction:
    base = Instruction(
        run_id="r",
        server_round=2,
        config_digest="c",
        plan_digest="p",
        vector=np.zeros(3, dtype=np.float32),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{}, {"clipping_norm": 0.25}, {"empty": True}, {"anchor": signed_head()}]
)
def test_what_an_instruction_may_say_beside_the_adapter(changes: dict[str, object]) -> None:
    got = decode_instruction(encode_instruction(instruction(**changes)))
    for name in ("clipping_norm", "empty", "anchor"):
        assert getattr(got, name) == getattr(instruction(**changes), name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("empty", 1),
        ("clipping-norm", 1),
        ("ledger-seq", "7"),
        ("ledger-hash", None),
        ("ledger-signature", None),
    ],
)
def test_half_an_anchor_or_another_type_is_refused(key: str, value: object) -> None:
    records = encode_instruction(instruction(anchor=signed_head(), clipping_norm=1.0))
    if value is None:
        del records[HEADER][key]
    else:
        records[HEADER][key] = value  # type: ignore[assignment]
    with pytest.raises(SchemaMismatch):
        decode_instruction(records)


def call(phase: Phase = "share") -> PhaseCall:
    return PhaseCall(
        phase=phase,
        payload=b"\x00\xff",
        run_id="r",
        server_round=2,
        config_digest="c",
        plan_digest="p",
    )


@pytest.mark.parametrize("phase", PHASES)
def test_phases_round_trip(phase: Phase) -> None:
    assert decode_phase_call(encode_phase_call(call(phase))) == call(phase)
    reply = PhaseReply(phase=phase, payload=b"abc")
    records = encode_phase_reply(reply)
    assert decode_phase_reply(records, phase=phase) == reply
    assert set(records[HEADER]) == {"protocol", "phase", "payload"}
    assert list(records) == [HEADER]


def test_a_phase_may_carry_the_instruction_to_train() -> None:
    records = encode_phase_call(call("mask"), instruction(empty=True))
    assert decode_phase_call(records) == call("mask")
    assert decode_instruction(records).empty


def test_an_instruction_alone_is_no_phase() -> None:
    assert decode_phase_call(encode_instruction(instruction())) is None


def test_an_answer_to_another_phase_is_refused() -> None:
    records = encode_phase_reply(PhaseReply(phase="share", payload=b""))
    with pytest.raises(SchemaMismatch, match="phase"):
        decode_phase_reply(records, phase="mask")
    with pytest.raises(ClientFailed, match="policy-refused"):
        decode_phase_reply(encode_failure("policy-refused"), phase="mask")
    records[HEADER].update({"phase": "undress"})  # type: ignore[dict-item]
    with pytest.raises(SchemaMismatch, match="undress"):
        decode_phase_reply(records, phase="mask")
    with pytest.raises(SchemaMismatch, match="payload"):
        decode_phase_call(_without_payload())


def _without_payload() -> RecordDict:
    records = encode_phase_call(call())
    del records[HEADER]["payload"]
    return records


def test_payloads_are_not_shown() -> None:
    assert "payload" not in repr(call())
    assert "payload" not in repr(PhaseReply(phase="mask", payload=b"secret"))


def test_an_update_is_read_in_place_and_cannot_be_written() -> None:
    """Nothing is copied; what a client trains from is a copy of its own."""
    records = encode_update(update(np.arange(5, dtype=np.float32)))
    array = records[ADAPTER][VECTOR]
    assert isinstance(array, Array)
    found = decode(records, size=5).vector
    assert np.shares_memory(found, np.frombuffer(array.data, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 9.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.setflags(write=True)
    array.data = bytearray(array.data)  # type: ignore[assignment]
    assert not decode(records, size=5).vector.flags.writeable
    told = Instruction(run_id="r", server_round=1, config_digest="c", plan_digest="p", vector=found)
    taken = decode_instruction(encode_instruction(told)).vector
    assert taken.flags.writeable
    assert taken.flags.owndata


@given(vector=vectors)
def test_a_vote_travels_with_its_reference_and_nothing_else_does(vector: np.ndarray) -> None:
    sent = Instruction(
        run_id="r",
        server_round=3,
        config_digest="c",
        plan_digest="p",
        vector=vector,
        reference=-vector,
    )
    records = encode_instruction(sent)
    assert decode_phase_call(records) is None
    got = decode_instruction(records)
    assert got.reference is not None
    assert np.array_equal(got.reference, -vector, equal_nan=True)
    voted = dataclasses.replace(update(vector), vote=-1)
    found = decode_update(
        encode_update(voted),
        server_round=3,
        config_digest="c",
        stage="clipped",
        size=vector.size,
        votes=True,
    )
    assert found.vote == -1
    with pytest.raises(SchemaMismatch, match="vote"):
        decode(encode_update(voted), size=vector.size)


@pytest.mark.parametrize("vote", [None, 2, -2, 1.0, True, "1"])
def test_no_other_vote_is_read(vote: object) -> None:
    records = encode_update(update(np.zeros(2, dtype=np.float32)))
    header = records[HEADER]
    assert isinstance(header, ConfigRecord)
    if vote is not None:
        header["vote"] = vote  # type: ignore[assignment]
    with pytest.raises(SchemaMismatch):
        decode_update(
            records, server_round=3, config_digest="c", stage="clipped", size=2, votes=True
        )


def test_a_reply_and_a_phase_carry_no_reference() -> None:
    vector = np.zeros(2, dtype=np.float32)
    records = encode_update(update(vector))
    records["reference"] = records[ADAPTER]
    with pytest.raises(SchemaMismatch):
        decode(records, size=2)
    call = PhaseCall(
        phase="mask",
        payload=b"",
        run_id="r",
        server_round=1,
        config_digest="c",
        plan_digest="p",
    )
    told = Instruction(
        run_id="r", server_round=1, config_digest="c", plan_digest="p", vector=vector
    )
    phased = encode_phase_call(call, told)
    phased["reference"] = phased[ADAPTER]
    with pytest.raises(SchemaMismatch):
        decode_phase_call(phased)
