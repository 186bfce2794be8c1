"""Safetensors headers from anyone: what passes, the library reads alike; the rest is refused."""

from __future__ import annotations

import io
import json
import random
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from shared.errors import AdapterCorrupt
from shared.tensorfile import Tensor, TensorLimits, read_tensor_header

GOOD = save(
    {
        "base_model.model.q.lora_A.weight": np.arange(10, dtype=np.float32).reshape(2, 5),
        "base_model.model.q.lora_B.weight": np.arange(12, dtype=np.float16).reshape(6, 2),
    },
    metadata={"format": "pt"},
)
MUTANTS_PER_EXAMPLE = 60
EXAMPLES = 400


def check(data: bytes) -> tuple[Tensor, ...]:
    return read_tensor_header(io.BytesIO(data), len(data))


def accepted(data: bytes) -> bool:
    """Tell whether a file passes; then the library must read the same tensors from it."""
    try:
        tensors = check(data)
    except AdapterCorrupt:
        return False
    known = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    assert set(known) == {tensor.name for tensor in tensors}
    for tensor in tensors:
        entry = known[tensor.name]
        assert (entry["dtype"], tuple(entry["shape"])) == (tensor.dtype, tensor.shape)
        assert bytes(entry["data"]) == data[tensor.start : tensor.stop]
    return True


def encode(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(**change: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **change}


def test_a_file_of_the_library_passes_with_its_shapes() -> None:
    tensors = check(GOOD)
    assert [(t.dtype, t.shape) for t in tensors] == [("F32", (2, 5)), ("F16", (6, 2))]
    assert tensors[-1].stop == len(GOOD)
    assert accepted(GOOD)


SPLICES = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"-1", b"1e9", b"null", b"true", b"NaN",
    b"99999999999999999999", b'"dtype":"F64"', b'"shape":[]', b"\\u0000", b"\xff", b"\x00" * 8,
    b'"data_offsets":[0,0]', b"__metadata__", b"../", b"[" * 400,
]  # fmt: skip


def mutant(rng: random.Random) -> bytes:
    """Return a file that differs from a good one in a few places, mostly in its header."""
    data = bytearray(GOOD)
    reach = len(data) if rng.random() < 0.2 else struct.unpack("<Q", GOOD[:8])[0] + 8
    for _ in range(rng.randint(1, 3)):
        at, kind = rng.randrange(reach), rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[at : at + rng.randint(1, 8)] = b""
        elif kind == 2:
            data[at:at] = rng.choice(SPLICES)
        elif kind == 3:
            data[:8] = struct.pack("<Q", rng.choice([0, 1, 2, len(data), 1 << 20, 1 << 63, at]))
        elif kind == 4:
            data = data[: rng.randrange(len(data) + 1)]
            reach = max(1, min(reach, len(data)))
        else:
            data += rng.randbytes(rng.randint(1, 40))
        reach = max(1, min(reach, len(data)))
        if not data:
            break
    return bytes(data)


@pytest.mark.slow
def test_twenty_thousand_hostile_files_are_refused_or_read_as_the_library_reads_them() -> None:
    counts = {True: 0, False: 0}

    @given(st.integers(0, 2**32))
    @settings(max_examples=EXAMPLES, database=None)
    def batch(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(MUTANTS_PER_EXAMPLE):
            counts[accepted(mutant(rng))] += 1

    tracemalloc.start()
    batch()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(counts.values()) >= 20_000
    assert counts[False] > 10 * counts[True]
    assert peak < 64 << 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64"]) | JSON,
        "shape": st.lists(st.integers(-1, 6), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-4, 60), max_size=3) | JSON,
        "more": JSON,
    },
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "../c", "__metadata__", ""]), ENTRY | JSON),
    st.binary(max_size=60),
)
@settings(max_examples=150)
def test_headers_of_any_content_are_refused_or_read_alike(header: Any, body: bytes) -> None:
    accepted(encode(header, body))


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_any_bytes_are_refused_or_read_alike(data: bytes) -> None:
    accepted(data)


TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32",'
BAD: dict[str, bytes] = {
    "empty": b"",
    "no header": encode(b""),
    "an array": encode([1, 2]),
    "a string": encode("{}"),
    "space before": encode(b" {}"),
    "no tensors": encode({}),
    "deep": encode(b"{" + b'"a":[' * 100_000),
    "deep lists": encode(b'{"a":' + b"[" * 200_000),
    "a key twice": encode(TWICE + b'"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "offset twice": encode(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8],"data_offsets":[0,4]}}', bytes(4)
    ),
    "overlap": encode({"a": entry(), "b": entry()}, bytes(24)),
    "gap": encode({"a": entry(), "b": entry(data_offsets=[28, 52])}, bytes(52)),
    "hidden tail": encode({"a": entry()}, bytes(25)),
    "beyond the end": encode({"a": entry()}, bytes(23)),
    "backwards": encode({"a": entry(data_offsets=[24, 0])}, bytes(24)),
    "negative": encode({"a": entry(data_offsets=[-24, 0])}, bytes(24)),
    "other size": encode({"a": entry(shape=[2, 4])}, bytes(24)),
    "negative extents": encode({"a": entry(shape=[-2, -3])}, bytes(24)),
    "no extent": encode({"a": entry(shape=[0, 3], data_offsets=[0, 0])}),
    "no shape": encode({"a": entry(shape=[], data_offsets=[0, 4])}, bytes(4)),
    "three dimensions": encode({"a": entry(shape=[1, 2, 3])}, bytes(24)),
    "huge extent": encode({"a": entry(shape=[1 << 30, 1])}, bytes(24)),
    "a product that wraps": encode({"a": entry(shape=[1 << 22, 1 << 22])}, bytes(24)),
    "boolean extent": encode({"a": entry(shape=[True, 6])}, bytes(24)),
    "fraction": encode({"a": entry(shape=[2.0, 3])}, bytes(24)),
    "exponent": encode({"a": entry(data_offsets=[0, 2.4e1])}, bytes(24)),
    "long number": encode(b'{"a":' + b"9" * 5000 + b"}"),
    "NaN": encode(b'{"a":NaN}'),
    "bfloat16": encode({"a": entry(dtype="BF16", shape=[2, 6])}, bytes(24)),
    "pickle": encode({"a": entry(dtype="O")}, bytes(24)),
    "a dtype that is a list": encode({"a": entry(dtype=["F32"])}, bytes(24)),
    "another key": encode({"a": entry(more=1)}, bytes(24)),
    "a key less": encode({"a": {"dtype": "F32", "shape": [6]}}, bytes(24)),
    "no name": encode({"": entry()}, bytes(24)),
    "a path": encode({"../a": entry()}, bytes(24)),
    "a long name": encode({"a" * 513: entry()}, bytes(24)),
    "a name with a new line": encode({"a\n": entry()}, bytes(24)),
    "metadata of numbers": encode({"a": entry(), "__metadata__": {"x": 1}}, bytes(24)),
    "metadata that is text": encode({"a": entry(), "__metadata__": "x"}, bytes(24)),
    "large metadata": encode({"a": entry(), "__metadata__": {"x": "y" * 20_000}}, bytes(24)),
    "UTF-16": encode(json.dumps({"a": entry()}).encode("utf-16"), bytes(24)),
    "bad UTF-8": encode(b'{"\xff":1}'),
    "header past the end": encode(b"{}", length=100),
    "header of 2 bytes less": encode({"a": entry()}, bytes(24), length=2),
    "many tensors": encode(
        {f"t{n}": entry(shape=[1], data_offsets=[4 * n, 4 * n + 4]) for n in range(8193)},
        bytes(4 * 8193),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_known_to_be_wrong_is_refused(name: str) -> None:
    with pytest.raises(AdapterCorrupt, match="safetensors file"):
        check(BAD[name])


class Counting(io.BytesIO):
    """A stream that counts what is read from it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.taken += len(found)
        return found


@pytest.mark.parametrize("length", [1 << 21, 1 << 40, (1 << 64) - 1])
def test_a_huge_header_is_refused_before_it_is_read(length: int) -> None:
    stream = Counting(struct.pack("<Q", length) + b" " * (3 << 20))
    with pytest.raises(AdapterCorrupt, match="expected at most"):
        read_tensor_header(stream, 1 << 62)
    assert stream.taken == 8


def test_no_more_than_the_header_is_read() -> None:
    stream = Counting(GOOD)
    read_tensor_header(stream, len(GOOD))
    assert stream.taken == 8 + struct.unpack("<Q", GOOD[:8])[0]


def test_a_caller_may_set_other_limits() -> None:
    with pytest.raises(AdapterCorrupt, match="expected 1 to 1"):
        read_tensor_header(io.BytesIO(GOOD), len(GOOD), limits=TensorLimits(tensors=1))


def test_a_message_repeats_nothing_of_the_file() -> None:
    secret = "a secret name of a layer"
    with pytest.raises(AdapterCorrupt) as found:
        check(encode({secret: entry()}, bytes(24)))
    assert secret not in str(found.value)
