"""Norms and sums by blocks: right to a proven error, and never beyond a bound.

Oracles: sums of squares as exact fractions, ``math.fsum``, and numpy on whole vectors.
"""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.privacy.norms import (
    BLOCK,
    NORM_ERROR,
    add_scaled,
    clip_factor,
    is_within,
    norm_of,
    scaled_towards_zero,
)

Vector = npt.NDArray[np.float32]

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149

finite = hnp.arrays(
    np.float32,
    st.integers(1, 30),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True),
)
bounds = st.one_of(
    st.floats(1e-3, 1e3), st.floats(5e-324, 1e-30), st.floats(1e30, 1e300), st.just(1.0)
)
# Shorter than a row of a dot product, than a block, at their borders, and over several blocks.
SIZES = (1, 8191, 8192, 8193, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 8193)


def squared(values: npt.NDArray[np.floating]) -> Fraction:
    """Return the sum of squares, exactly."""
    return sum((Fraction(float(value)) ** 2 for value in values), Fraction(0))


def normal(size: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def near(norm: float, square: Fraction) -> bool:
    """Tell whether a norm is within the promised error of the root of an exact square."""
    error = Fraction(NORM_ERROR)
    return square * (1 - error) ** 2 <= Fraction(norm) ** 2 <= square * (1 + error) ** 2


@given(finite)
@example(np.array([LARGEST, -LARGEST], dtype=np.float32))
@example(np.array([1e30] * 30, dtype=np.float32))
@example(np.array([SMALLEST], dtype=np.float32))
@example(np.array([LARGEST, SMALLEST], dtype=np.float32))
def test_the_norm_is_right_to_its_error(vector: Vector) -> None:
    assert near(norm_of(vector), squared(vector))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e30])
def test_the_norm_of_a_long_vector(size: int, scale: float) -> None:
    vector = normal(size, seed=size) * np.float32(scale)
    exact = math.fsum((vector.astype(np.float64) ** 2).tolist())
    assert near(norm_of(vector), Fraction(exact))


def test_a_view_of_unaligned_bytes_has_the_same_norm() -> None:
    vector = normal(1000)
    moved = np.frombuffer(b"x" + vector.tobytes(), dtype=np.float32, offset=1)
    assert not moved.flags.aligned
    assert norm_of(moved) == norm_of(vector)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_number_that_is_none_is_never_lost(size: int, poison: float, where: float) -> None:
    vector = normal(size)
    vector[int(where * (size - 1))] = poison
    norm = norm_of(vector)
    assert not math.isfinite(norm)
    assert not is_within(norm, 1e300)
    assert clip_factor(norm, 1e300) == 0.0


def test_two_infinities_are_not_finite_together() -> None:
    assert not math.isfinite(norm_of(np.array([np.inf, -np.inf, np.nan], dtype=np.float32)))


@given(finite, bounds)
@example(np.array([3.0, 4.0], dtype=np.float32), 5.0)
@example(np.array([1.0], dtype=np.float32), math.nextafter(1.0, 0.0))
@example(np.array([LARGEST] * 7, dtype=np.float32), 1.0)
@example(np.array([SMALLEST] * 3, dtype=np.float32), SMALLEST)
@example(np.array([1.0, 0.6, 0.6], dtype=np.float32), 5e-324)
def test_nothing_is_beyond_the_bound_in_exact_arithmetic(vector: Vector, bound: float) -> None:
    """Both as it is summed, in float64, and as it is sent, in float32."""
    norm = norm_of(vector)
    factor = clip_factor(norm, bound)
    limit = Fraction(bound) ** 2
    assert 0.0 <= factor <= 1.0
    total = np.zeros(vector.size)
    add_scaled(total, vector, factor)
    assert squared(total) <= limit
    assert squared(scaled_towards_zero(vector, factor)) <= limit
    assert not is_within(norm, bound) or squared(vector) <= limit
    assert (factor == 1.0) == is_within(norm, bound)


@given(st.integers(-40, 40), st.integers(1, 20), st.integers(0, 2**31))
def test_the_border_is_never_crossed(ulps: int, size: int, seed: int) -> None:
    """Bounds a few units in the last place around the exact norm."""
    vector = normal(size, seed)
    bound = math.sqrt(squared(vector))
    for _ in range(abs(ulps)):
        bound = math.nextafter(bound, math.inf if ulps > 0 else 0.0)
    total = np.zeros(size)
    add_scaled(total, vector, clip_factor(norm_of(vector), bound))
    assert squared(total) <= Fraction(bound) ** 2
    assert np.linalg.norm(total) >= bound * (1 - 2e-9)


@given(finite, bounds)
def test_what_was_clipped_is_within(vector: Vector, bound: float) -> None:
    clipped = scaled_towards_zero(vector, clip_factor(norm_of(vector), bound))
    assert is_within(norm_of(clipped), bound)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [1.0, 0.3, 1e-30, 0.0])
def test_a_scaled_sum_is_that_of_whole_vectors(size: int, factor: float) -> None:
    """Bit for bit: every coordinate is one product and one sum."""
    vector, total = normal(size), np.random.default_rng(1).standard_normal(size)
    expected = total + vector.astype(np.float64) * factor
    add_scaled(total, vector, factor)
    np.testing.assert_array_equal(total, expected)


def plainly_towards_zero(vector: Vector, factor: float) -> Vector:
    """Round as numpy does, and step back where that went too far."""
    exact = vector.astype(np.float64) * factor
    rounded = exact.astype(np.float32)
    far = np.abs(rounded.astype(np.float64)) > np.abs(exact)
    return np.where(far, np.nextafter(rounded, np.float32(0.0)), rounded)


@given(finite, st.floats(0.0, 1.0))
@example(np.array([SMALLEST, -SMALLEST], dtype=np.float32), 0.75)
@example(np.array([LARGEST, -LARGEST], dtype=np.float32), math.nextafter(1.0, 0.0))
def test_rounding_towards_zero(vector: Vector, factor: float) -> None:
    before = vector.copy()
    found = scaled_towards_zero(vector, factor)
    np.testing.assert_array_equal(found, plainly_towards_zero(vector, factor))
    np.testing.assert_array_equal(vector, before)
    assert not np.shares_memory(found, vector)


def test_rounding_towards_zero_over_blocks() -> None:
    vector = normal(2 * BLOCK + 5)
    np.testing.assert_array_equal(
        scaled_towards_zero(vector, 0.7), plainly_towards_zero(vector, 0.7)
    )


def test_what_is_not_finite_becomes_zero_by_a_factor_of_zero() -> None:
    vector = np.array([np.nan, np.inf, 1.0], dtype=np.float32)
    total = np.ones(3)
    add_scaled(total, vector, 0.0)
    assert total.tolist() == [1.0] * 3
    assert scaled_towards_zero(vector, 0.0).tolist() == [0.0] * 3


def test_no_vector_of_full_length_is_made() -> None:
    vector, total = normal(16 * BLOCK), np.zeros(16 * BLOCK)
    tracemalloc.start()
    try:
        add_scaled(total, vector, clip_factor(norm_of(vector), 1.0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 8 * BLOCK <= peak < 2 * 8 * BLOCK
