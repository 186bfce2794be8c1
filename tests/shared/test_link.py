"""The link of a scenario: packing, the adapter's way down, and messages of the wrong code."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.configlink import LinkSection
from shared.errors import SchemaMismatch
from shared.link import Coded, Downlink, Link, pack, unpack, uplink
from shared.lora import Vector
from shared.wire import (
    ADAPTER,
    HEADER,
    VECTOR,
    ClientUpdate,
    Instruction,
    decode_instruction,
    decode_update,
    encode_instruction,
    encode_update,
    payload_bytes,
)

UPS = ("fp16", "int8", "int4", "topk")
vectors = arrays(np.float32, st.integers(1, 90), elements=st.floats(-100, 100, width=32))


def link_of(up: str, **others: Any) -> Link:
    found = uplink(LinkSection.model_validate({"up": up, "block": 16, **others}))
    assert found is not None
    return found


def sent(link: Link, vector: Vector) -> RecordDict:
    coded = link.encode(vector, None)
    return encode_update(
        ClientUpdate(server_round=1, config_digest="c", stage="plain", vector=vector, coded=coded)
    )


def read(records: RecordDict, link: Link | None, size: int) -> Vector:
    return decode_update(
        records, server_round=1, config_digest="c", stage="plain", size=size, link=link
    ).vector


@given(body=st.binary(max_size=300))
def test_packing_is_undone_and_never_costs_more_than_a_byte(body: bytes) -> None:
    packed = pack(body)
    assert len(packed) <= len(body) + 1
    assert unpack(packed, len(body)) == body


@given(data=st.binary(max_size=300), length=st.integers(0, 100))
def test_any_bytes_are_unpacked_to_the_length_or_refused(data: bytes, length: int) -> None:
    try:
        assert len(unpack(data, length)) == length or data[0] == 0
    except SchemaMismatch:
        return


BOMB = b"\x01" + zlib.compress(bytes(50_000_000), 9)


@pytest.mark.parametrize(
    "data",
    [
        BOMB,
        b"",
        b"\x02" + bytes(10),
        b"\x01" + bytes(10),
        b"\x01" + zlib.compress(bytes(99)),
        b"\x01" + zlib.compress(bytes(101)),
        b"\x01" + zlib.compress(bytes(100)) + b"more",
        b"\x01" + zlib.compress(bytes(100))[:-1],
        b"\x00" + bytes(101),
    ],
    ids=["bomb", "empty", "kind", "no zlib", "short", "long", "tail", "cut", "stored too long"],
)
def test_what_does_not_unpack_to_the_length_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaMismatch):
        unpack(data, 100)


def test_a_bomb_makes_no_more_than_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty megabytes in fifty thousand bytes: refused by length, and bounded past that."""
    made: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self._stream = real()
            self.eof, self.unused_data = False, b""

        def decompress(self, data: bytes, most: int) -> bytes:
            body = self._stream.decompress(data, most)
            made.append(len(body))
            return body

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(SchemaMismatch):
        unpack(BOMB, 100)
    assert made == []
    with pytest.raises(SchemaMismatch):
        unpack(BOMB, 60_000)
    assert made == [60_001]


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("up", UPS)
@given(vector=vectors)
def test_an_update_is_read_as_it_was_coded(up: str, vector: Vector, *, entropy: bool) -> None:
    link = link_of(up, entropy=entropy)
    found = read(sent(link, vector), link, vector.size)
    assert np.array_equal(found, link.decode(link.encode(vector, None), vector.size))


@pytest.mark.parametrize("up", UPS)
def test_an_update_of_another_code_is_refused(up: str) -> None:
    vector = np.ones(32, dtype=np.float32)
    link, whole = (
        link_of(up),
        ClientUpdate(server_round=1, config_digest="c", stage="plain", vector=vector),
    )
    with pytest.raises(SchemaMismatch, match="codec"):
        read(sent(link, vector), None, 32)
    with pytest.raises(SchemaMismatch, match="codec"):
        read(encode_update(whole), link, 32)
    other = link_of("int8" if up != "int8" else "int4")
    with pytest.raises(SchemaMismatch, match="another code"):
        read(sent(other, vector), link, 32)
    for size in (31, 33):
        with pytest.raises(SchemaMismatch):
            read(sent(link, vector), link, size + 8)


def test_bytes_of_another_form_are_refused() -> None:
    link, vector = link_of("int8"), np.ones(32, dtype=np.float32)
    records = sent(link, vector)
    data = link.encode(vector, None).data
    forms: list[np.ndarray] = [
        np.frombuffer(data, dtype=np.int8),
        np.frombuffer(data, dtype=np.uint8).reshape(2, -1),
        vector,
    ]
    for array in forms:
        records[ADAPTER] = ArrayRecord({VECTOR: Array(array)})
        with pytest.raises(SchemaMismatch):
            read(records, link, 32)
    header = dict(records[HEADER])
    records = sent(link, vector)
    records[HEADER] = ConfigRecord({**header, "codec": 8})  # type: ignore[dict-item]
    with pytest.raises(SchemaMismatch, match="codec"):
        read(records, link, 32)


def test_coded_bytes_are_the_bytes_that_are_counted() -> None:
    """Of 4,096 numbers: 128 bytes of an array's own header beside what the code takes."""
    vector = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    header = payload_bytes(sent(link_of("int8"), vector[:0])) - 128
    for up, expected in (("fp16", 8192), ("int8", 4096 + 512), ("int4", 2048 + 512)):
        assert payload_bytes(sent(link_of(up), vector)) == header + 128 + expected


def down(word: str, start: Vector, *, entropy: bool = False) -> Downlink:
    return Downlink(
        LinkSection.model_validate({"down": word, "block": 16, "entropy": entropy}), start
    )


def instruction(vector: Vector, coded: Coded | None) -> Instruction:
    return Instruction(
        run_id="r",
        server_round=1,
        config_digest="c",
        plan_digest="p",
        vector=vector,
        coded=coded,
    )


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("word", ["fp32", "fp16", "delta"])
@given(vector=vectors)
def test_client_and_server_agree_on_the_adapter(
    word: str, vector: Vector, *, entropy: bool
) -> None:
    start = np.linspace(-1, 1, vector.size, dtype=np.float32)
    server, client = (down(word, start, entropy=entropy) for _ in range(2))
    seen, coded = server.seen(vector)
    got = decode_instruction(encode_instruction(instruction(seen, coded)), client)
    assert np.array_equal(got.vector, seen)
    assert (coded is None) == (word == "fp32")
    error = np.abs(seen.astype(np.float64) - vector)
    most = {"fp32": 0.0, "fp16": 2.0**-11 * 100 + 2.0**-25, "delta": 101 / 127 / 2 * 1.002}[word]
    assert error.max() <= most


def test_an_error_does_not_add_up_over_rounds() -> None:
    """A hundred small steps, each below the code's own: what clients read follows all the same."""
    rng = np.random.default_rng(3)
    start = rng.standard_normal(64).astype(np.float32)
    link, vector = down("delta", start), start.copy()
    for _ in range(100):
        vector = (vector + 1e-3 * np.sign(start)).astype(np.float32)
        seen, _ = link.seen(vector)
        largest = np.abs(vector - start).reshape(-1, 16).max(axis=1).repeat(16)
        assert (np.abs(seen - vector) <= largest / 127 / 2 * 1.002 + 1e-6).all()


@pytest.mark.parametrize("word", ["fp16", "delta"])
def test_what_has_no_code_travels_whole(word: str) -> None:
    start = np.zeros(32, dtype=np.float32)
    link = down(word, start)
    for vector in (np.full(32, 1e9, dtype=np.float32), np.ones(33, dtype=np.float32)):
        seen, coded = link.seen(vector)
        assert coded is None
        got = decode_instruction(encode_instruction(instruction(seen, coded)), link)
        assert np.array_equal(got.vector, vector)


def test_an_adapter_of_a_code_that_was_not_agreed_is_refused() -> None:
    start = np.zeros(32, dtype=np.float32)
    _, coded = down("fp16", start).seen(start)
    told = encode_instruction(instruction(start, coded))
    for reader in (None, down("fp32", start), down("delta", start)):
        with pytest.raises(SchemaMismatch):
            decode_instruction(told, reader)
    with pytest.raises(SchemaMismatch):
        decode_instruction(told, down("fp16", start[:31]))
