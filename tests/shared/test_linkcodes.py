"""Codes: what is read is what was written, on the mean; hostile bytes are refused before use."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from shared.errors import InvalidValue, SchemaMismatch
from shared.linkcodes import INT4, INT8, Blocks, Code, Half, Largest
from shared.lora import Vector
from shared.privacy.noise import NoiseSource

EIGHT = Blocks(name="int8", levels=INT8, block=16)
FOUR = Blocks(name="int4", levels=INT4, block=16)
CODES: dict[str, Code] = {
    "fp16": Half(),
    "int8": EIGHT,
    "int4": FOUR,
    "topk fp16": Largest(keep=0.1, values=Half()),
    "topk int4": Largest(keep=0.3, values=FOUR),
}
vectors = arrays(
    np.float32,
    st.integers(1, 70),
    elements=st.floats(-(2.0**16), 2.0**16, width=32, allow_subnormal=True),
)
codes = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


def source(*labels: str | int) -> NoiseSource:
    return NoiseSource.seeded(11, "test-link", *labels)


@codes
@given(vector=vectors)
def test_the_length_depends_on_the_size_alone(code: Code, vector: Vector) -> None:
    data = code.encode(vector, source().uniform)
    assert len(data) == code.length(vector.size)
    assert code.decode(data, vector.size).shape == vector.shape


@pytest.mark.parametrize("code", [EIGHT, FOUR], ids=["int8", "int4"])
@given(vector=vectors, nearest=st.booleans())
def test_integers_are_off_by_less_than_a_step(
    code: Blocks, vector: Vector, *, nearest: bool
) -> None:
    found = code.decode(
        code.encode(vector, None if nearest else source().uniform), vector.size
    ).astype(np.float64)
    largest = np.array(
        [np.abs(vector[i : i + 16]).max() for i in range(0, vector.size, 16)], dtype=np.float64
    )
    # A half-precision scale is rounded up by a part in 1024, or to the next multiple of 2**-24.
    steps = np.repeat(largest / code.levels * (1 + 2.0**-10) + 2.0**-24, 16)[: vector.size]
    error = np.abs(found - vector)
    assert (error <= steps * (0.5 if nearest else 1.0) * (1 + 1e-9)).all()
    slack = 2.0**-23 * math.sqrt(vector.size)
    assert np.linalg.norm(found) <= code.stretch * np.linalg.norm(vector.astype(np.float64)) + slack


@given(vector=arrays(np.float32, st.integers(1, 70), elements=st.floats(-70000, 70000, width=32)))
def test_half_precision_is_numpys_and_ends_at_its_largest_number(vector: Vector) -> None:
    found = Half().decode(Half().encode(vector, None), vector.size)
    expected = np.clip(vector, -65504, 65504).astype(np.float16).astype(np.float32)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("code", [EIGHT, FOUR], ids=["int8", "int4"])
def test_rounding_is_unbiased_with_the_variance_of_theory(code: Blocks) -> None:
    """Mean by z-tests at 1e-4 in all (Bonferroni over 48), variance by 6 sigma of its own error.

    The oracle is arithmetic: a number at fraction f of a step rounds up with probability f.
    """
    rng = np.random.default_rng(5)
    vector = (rng.standard_normal(48) * 10.0 ** rng.integers(-3, 2, 48)).astype(np.float32)
    draws = 20_000
    generator = source(code.name)
    found = np.array(
        [code.decode(code.encode(vector, generator.uniform), 48) for _ in range(draws)],
        dtype=np.float64,
    )
    steps = np.repeat(code.scales(vector).astype(np.float64), 16)
    ratio = vector.astype(np.float64) / steps
    fraction = ratio - np.floor(ratio)
    variance = steps**2 * fraction * (1 - fraction)
    moved = variance > 0
    assert moved.sum() > 40
    z = (found.mean(axis=0) - vector)[moved] / np.sqrt(variance[moved] / draws)
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 48 / 2)
    # Of a coin with probability f: the fourth central moment is f(1-f)(1-3f(1-f)) steps**4.
    spread = fraction * (1 - fraction)
    fourth = steps**4 * spread * (1 - 3 * spread)
    off = np.sqrt((fourth - variance**2).clip(min=1e-30) / draws)
    assert (
        np.abs(found.var(axis=0) - variance)[moved] < 6 * off[moved] + 1e-3 * variance[moved]
    ).all()
    assert np.array_equal(
        found[:, ~moved], np.broadcast_to(vector[~moved], (draws, (~moved).sum()))
    )


def test_another_draw_rounds_otherwise_and_the_same_one_alike() -> None:
    vector = np.linspace(-1, 1, 64, dtype=np.float32)
    one, two = (FOUR.encode(vector, source(n).uniform) for n in (1, 2))
    assert one != two
    assert one == FOUR.encode(vector, source(1).uniform)


@given(vector=vectors, keep=st.floats(0.01, 0.99))
def test_the_largest_are_sent_and_nothing_else(vector: Vector, keep: float) -> None:
    code = Largest(keep=keep, values=Half())
    found = code.decode(code.encode(vector, None), vector.size)
    count = max(1, math.ceil(keep * vector.size))
    places = code.places(vector)
    assert len(places) == count
    assert all(a < b for a, b in pairwise(places.tolist()))
    left = np.delete(np.abs(vector), places)
    assert left.size == 0 or left.max() <= np.abs(vector[places]).min()
    assert not np.delete(found, places).any()
    expected = np.clip(vector[places], -65504, 65504).astype(np.float16)
    assert np.array_equal(found[places], expected)


@codes
@given(data=st.binary(max_size=200), size=st.integers(0, 70))
def test_any_bytes_are_read_or_refused(code: Code, data: bytes, size: int) -> None:
    """What is read is finite, of the size asked for, and was not longer than the code says."""
    try:
        found = code.decode(data, size)
    except SchemaMismatch:
        return
    assert len(data) == code.length(size)
    assert found.shape == (size,)
    assert np.isfinite(found).all()


@codes
@given(change=st.integers(0, 255), vector=vectors, place=st.integers(0, 10_000))
def test_a_changed_byte_is_refused_or_finite(
    code: Code, change: int, vector: Vector, place: int
) -> None:
    data = bytearray(code.encode(vector, None))
    data[place % len(data)] = change
    try:
        found = code.decode(bytes(data), vector.size)
    except SchemaMismatch:
        return
    assert np.isfinite(found).all()


def halves(values: list[float]) -> bytes:
    return np.array(values, dtype="<f2").tobytes()


HOSTILE: dict[str, tuple[Code, bytes]] = {
    "a scale that is infinite": (EIGHT, halves([np.inf]) + bytes(16)),
    "a scale that is NaN": (EIGHT, halves([np.nan]) + bytes(16)),
    "a negative scale": (EIGHT, halves([-1.0]) + bytes(16)),
    "level -128": (EIGHT, halves([1.0]) + b"\x80" + bytes(15)),
    "level -8": (FOUR, halves([1.0]) + b"\x08" + bytes(7)),
    "half of infinity": (Half(), halves([np.inf] * 16)),
    "one number too many": (Largest(keep=0.1, values=Half()), b"\xe0\x00" + bytes(4)),
    "one number too few": (Largest(keep=0.1, values=Half()), b"\x80\x00" + bytes(4)),
    "no numbers": (Largest(keep=0.1, values=Half()), bytes(6)),
    "one byte more": (EIGHT, bytes(19)),
    "one byte less": (FOUR, bytes(9)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_no_writer_makes_is_refused(kind: str) -> None:
    code, data = HOSTILE[kind]
    with pytest.raises(SchemaMismatch):
        code.decode(data, 16)


def test_padding_is_zero() -> None:
    """Fifteen numbers: the last half byte, and the last bit of a map, belong to nobody."""
    with pytest.raises(SchemaMismatch, match="padding"):
        FOUR.decode(halves([1.0]) + bytes(7) + b"\x10", 15)
    sparse = Largest(keep=0.1, values=Half())
    assert sparse.decode(b"\x00\x06" + bytes(4), 15).size == 15
    with pytest.raises(SchemaMismatch, match="marks"):
        sparse.decode(b"\x00\x05" + bytes(4), 15)


@codes
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_not_written(code: Code, bad: float) -> None:
    with pytest.raises(InvalidValue, match="NaN or infinity"):
        code.encode(np.array([1.0, bad], dtype=np.float32), source().uniform)


def test_the_bytes_of_a_million_numbers() -> None:
    """By hand: 2 bytes; 1 + 2/64; 1/2 + 2/64; 1/8 + 0.05 (1 + 2/64)."""
    size = 1_048_576
    eight = Blocks(name="int8", levels=INT8, block=64)
    four = Blocks(name="int4", levels=INT4, block=64)
    assert Half().length(size) == 2 * size
    assert eight.length(size) == size + size // 32
    assert four.length(size) == size // 2 + size // 32
    kept = math.ceil(0.05 * size)
    sparse = Largest(keep=0.05, values=eight)
    assert sparse.length(size) == size // 8 + kept + 2 * math.ceil(kept / 64)
