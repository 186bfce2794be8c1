from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.errors import InvalidValue, SensitivityError
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.mechanism import (
    AdapterDelta,
    ClippedDelta,
    ClippedSum,
    GaussianMechanism,
    clip_update,
)
from shared.privacy.noise import NoiseSource

Vector = npt.NDArray[np.float32]

vectors = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True),
)
bounds = st.one_of(
    st.floats(1e-3, 1e3), st.floats(5e-324, 1e-30), st.floats(1e30, 1e300), st.just(1.0)
)


def exact_norm(vector: Vector) -> float:
    """An oracle that shares nothing with the code: exact sums of exact squares."""
    scale = max(abs(float(v)) for v in vector)
    if scale == 0.0:
        return 0.0
    return scale * math.sqrt(math.fsum((float(v) / scale) ** 2 for v in vector))


def squared(values: npt.NDArray[np.floating]) -> Fraction:
    """Return the sum of squares, exactly."""
    return sum((Fraction(float(value)) ** 2 for value in values), Fraction(0))


def clipped(values: Any, bound: float = 1.0) -> ClippedDelta:
    vector = np.asarray(values, dtype=np.float32)
    return clip_update(AdapterDelta(vector=vector), clipping_norm=bound)


@given(vectors, bounds)
@example(np.array([3.4e38, -3.4e38], dtype=np.float32), 1.0)
@example(np.array([1e-45, 1e-45], dtype=np.float32), 1e-45)
@example(np.array([np.nan, 1.0], dtype=np.float32), 1.0)
@example(np.array([np.inf, -np.inf], dtype=np.float32), 1.0)
def test_no_update_exceeds_the_bound(vector: Vector, bound: float) -> None:
    before = vector.copy()
    result = clip_update(AdapterDelta(vector=vector), clipping_norm=bound)
    assert np.isfinite(result.vector).all()
    assert squared(result.vector) <= Fraction(bound) ** 2
    assert result.bound == bound
    np.testing.assert_array_equal(vector, before)


@given(vectors, bounds)
def test_clipping_twice_changes_nothing(vector: Vector, bound: float) -> None:
    once = clip_update(AdapterDelta(vector=vector), clipping_norm=bound)
    again = clip_update(AdapterDelta(vector=once.vector), clipping_norm=bound)
    np.testing.assert_array_equal(once.vector, again.vector)


@given(hnp.arrays(np.float32, 20, elements=st.floats(-1e3, 1e3, width=32)))
def test_a_long_update_keeps_its_direction_and_reaches_the_bound(vector: Vector) -> None:
    result = clipped(vector, 1.0).vector.astype(np.float64)
    norm = exact_norm(vector)
    # So close to the bound, a norm in float64 leaves it open which side the vector is on.
    if norm > 1.0 - 1e-11:
        np.testing.assert_allclose(result, vector.astype(np.float64) / norm, rtol=1e-5, atol=1e-9)
        assert np.linalg.norm(result) > 1.0 - 1e-6
    else:
        np.testing.assert_array_equal(result, vector)


def test_peers_bug_an_all_zero_update_divides_by_zero() -> None:
    assert clipped(np.zeros(5)).vector.tolist() == [0.0] * 5


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_peers_bug_nan_update_passes_unclipped(poison: float) -> None:
    assert clipped([1.0, poison, 2.0]).vector.tolist() == [0.0, 0.0, 0.0]


def test_peers_bug_clip_bound_passed_as_norm_type() -> None:
    """The bound scales and the norm is the second: (3, 4) at bound 2.5 is halved."""
    assert clipped([3.0, 4.0], 2.5).vector == pytest.approx([1.5, 2.0], rel=1e-6)


def test_peers_bug_each_tensor_clipped_separately() -> None:
    """One norm over all coordinates: two halves of norm 1 do not both stay at 1."""
    assert float(np.linalg.norm(clipped([1.0, 0.0, 1.0, 0.0]).vector)) <= 1.0


def test_the_norm_is_exact_where_float32_is_not() -> None:
    """Two million float32 squares lose 3e-5 when summed naively; the bound must still hold."""
    values = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)
    result = clipped(values).vector.astype(np.float64)
    assert 1.0 - 1e-6 < float(np.sqrt(np.sum(result * result))) <= 1.0


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, True, "1", None])
def test_a_bound_is_finite_and_positive(bad: Any) -> None:
    with pytest.raises(InvalidValue, match="clipping_norm"):
        clipped([1.0], bad)
    with pytest.raises(InvalidValue):
        ClippedSum(dimension=1, clipping_norm=bad)
    with pytest.raises(InvalidValue):
        GaussianMechanism(noise_multiplier=1.0, clipping_norm=bad)
    with pytest.raises(InvalidValue):
        GaussianMechanism(noise_multiplier=bad, clipping_norm=1.0)


@pytest.mark.parametrize("bad", [[1.0], np.zeros(2), np.zeros((1, 2), dtype=np.float32), None])
def test_an_update_is_a_float32_vector(bad: Any) -> None:
    with pytest.raises(SensitivityError, match="1-D float32"):
        AdapterDelta(vector=bad)


@pytest.mark.parametrize("values", [[1.0, 1.0], [np.nan], [np.inf], [1e30], [1.0]])
def test_the_clipped_type_is_its_own_proof(values: list[float]) -> None:
    with pytest.raises(SensitivityError, match="within its bound"):
        ClippedDelta(vector=np.array(values, dtype=np.float32), bound=1.0)


def test_a_clipped_update_cannot_be_changed_or_printed() -> None:
    delta = clipped([0.25, 0.5])
    with pytest.raises(ValueError, match="read-only"):
        delta.vector[0] = 9.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        delta.bound = 9.0  # type: ignore[misc]
    assert "0.25" not in repr(delta) + repr(AdapterDelta(vector=np.array([0.25], np.float32)))


def release(
    total: ClippedSum, z: float = 1e-12, expected: float = 4.0, **mechanism: Any
) -> npt.NDArray[np.float32]:
    gaussian = GaussianMechanism(noise_multiplier=z, clipping_norm=total.clipping_norm, **mechanism)
    return gaussian.release(total, expected_count=expected, source=NoiseSource.seeded(1)).vector


def test_the_mean_is_uniform_over_a_fixed_denominator() -> None:
    """Peers' bug: noise calibrated for the mean while the average is example-weighted."""
    total = ClippedSum(dimension=2, clipping_norm=1.0)
    for values in ([0.5, 0.0], [0.0, 0.25], [0.3, 0.4]):
        total.add(clipped(values))
    assert total.count == 3
    assert release(total, expected=4.0) == pytest.approx([0.2, 0.1625], abs=1e-6)


def test_peers_bug_skipping_the_noise_of_an_empty_batch() -> None:
    noise = release(ClippedSum(dimension=1000, clipping_norm=2.0), z=3.0, expected=10.0)
    assert float(np.std(noise)) == pytest.approx(0.6, rel=0.1)


def test_a_lying_client_cannot_exceed_the_bound() -> None:
    delta = clipped([0.6, 0.8])
    delta.vector.setflags(write=True)
    delta.vector[:] = [600.0, 800.0]
    total = ClippedSum(dimension=2, clipping_norm=1.0)
    total.add(delta)
    assert release(total, expected=1.0) == pytest.approx([0.6, 0.8], abs=1e-6)


def the_plain_way(vectors: list[Vector], bound: float) -> npt.NDArray[np.float64]:
    """Clip and add whole vectors in float64; what is not finite is zero."""
    total = np.zeros(vectors[0].size)
    for vector in vectors:
        if np.isfinite(vector).all():
            total += vector.astype(np.float64) * (bound / max(exact_norm(vector), bound))
    return total


@given(
    st.lists(hnp.arrays(np.float32, 6, elements=st.floats(width=32)), min_size=1, max_size=6),
    st.floats(1e-6, 1e6),
)
def test_clipping_while_adding_is_clipping_and_adding(many: list[Vector], bound: float) -> None:
    """Oracles: whole vectors in float64, and the way over the clipped type, which rounds."""
    fused, stepwise = (ClippedSum(dimension=6, clipping_norm=bound) for _ in range(2))
    for vector in many:
        before = vector.copy()
        norm = fused.clip_and_add(AdapterDelta(vector=vector))
        np.testing.assert_array_equal(vector, before)
        assert math.isfinite(norm) == np.isfinite(vector).all()
        if math.isfinite(norm):
            assert norm == pytest.approx(exact_norm(vector), rel=1e-12)
        stepwise.add(clip_update(AdapterDelta(vector=vector), clipping_norm=bound))
    assert fused.count == stepwise.count == len(many)
    found, other = fused.take(), stepwise.take()
    # The clip itself keeps 1e-9 of the bound; what is within it is added bit for bit.
    allowed = 1e-8 * bound * len(many)
    np.testing.assert_allclose(found, the_plain_way(many, bound), rtol=0, atol=allowed)
    np.testing.assert_allclose(found, other, rtol=0, atol=2**-22 * bound * len(many))


@given(
    st.lists(hnp.arrays(np.float32, 6, elements=st.floats(-1, 1, width=32)), min_size=1, max_size=6)
)
def test_what_is_within_the_bound_is_added_bit_for_bit(many: list[Vector]) -> None:
    fused, expected = ClippedSum(dimension=6, clipping_norm=3.0), np.zeros(6)
    for vector in many:
        fused.clip_and_add(AdapterDelta(vector=vector))
        expected += vector.astype(np.float64)
    np.testing.assert_array_equal(fused.take(), expected)


def test_a_clipped_sum_is_scaled_to_twelve_digits() -> None:
    """Many updates beyond the bound, over several blocks; oracle: whole vectors in float64."""
    rng = np.random.default_rng(3)
    total, expected = ClippedSum(dimension=300_000, clipping_norm=2.0), np.zeros(300_000)
    for _ in range(5):
        vector = rng.standard_normal(300_000, dtype=np.float32)
        total.clip_and_add(AdapterDelta(vector=vector))
        wide = vector.astype(np.float64)
        expected += wide * (2.0 / float(np.linalg.norm(wide)) * (1.0 - 1e-9))
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(total.take(), expected, rtol=1e-12, atol=1e-12 * scale)


@given(vectors, bounds)
@example(np.array([1e30, -1e30], dtype=np.float32), 1.0)
@example(np.array([np.nan, 1e30], dtype=np.float32), 1.0)
def test_one_client_moves_the_sum_by_at_most_the_sensitivity(vector: Vector, bound: float) -> None:
    """Exact arithmetic: the sum of one client is what adding or removing it changes."""
    total = ClippedSum(dimension=vector.size, clipping_norm=bound)
    total.clip_and_add(AdapterDelta(vector=vector))
    assert squared(total.take()) <= Fraction(bound) ** 2


def test_peers_bug_a_norm_that_the_client_reports() -> None:
    """There is no way to hand in a norm: neither type has one, and the sum takes its own."""
    delta = clipped([0.6, 0.0])
    delta.vector.setflags(write=True)
    delta.vector[:] = [1e30, 0.0]
    total = ClippedSum(dimension=2, clipping_norm=1.0)
    assert total.add(delta) == pytest.approx(1e30, rel=1e-6)
    assert total.take() == pytest.approx([1.0, 0.0], abs=1e-8)
    with pytest.raises(TypeError, match="norm"):
        ClippedDelta(vector=np.ones(2, np.float32), bound=1.0, norm=0.5)  # type: ignore[call-arg]
    assert {field.name for field in dataclasses.fields(ClippedDelta)} == {"vector", "bound"}
    assert {field.name for field in dataclasses.fields(AdapterDelta)} == {"vector"}


@pytest.mark.parametrize(
    "make",
    [lambda: np.zeros(2, dtype=np.float32), lambda: clipped([0.1, 0.1]), lambda: None],
    ids=["an array", "already clipped", "nothing"],
)
def test_only_a_raw_update_is_clipped_while_adding(make: Callable[[], Any]) -> None:
    total = ClippedSum(dimension=2, clipping_norm=1.0)
    with pytest.raises(SensitivityError, match="expected a AdapterDelta"):
        total.clip_and_add(make())
    with pytest.raises(SensitivityError, match="3 coordinates"):
        total.clip_and_add(AdapterDelta(vector=np.zeros(3, dtype=np.float32)))
    assert total.count == 0
    total.take()
    with pytest.raises(SensitivityError, match="already released"):
        total.clip_and_add(AdapterDelta(vector=np.zeros(2, dtype=np.float32)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: clipped([0.1, 0.1], 2.0),
        lambda: clipped([0.1, 0.1, 0.1]),
        lambda: AdapterDelta(vector=np.zeros(2, dtype=np.float32)),
        lambda: np.zeros(2, dtype=np.float32),
    ],
    ids=["another bound", "another dimension", "not clipped", "not an update"],
)
def test_what_does_not_fit_is_not_summed(make: Callable[[], Any]) -> None:
    total = ClippedSum(dimension=2, clipping_norm=1.0)
    with pytest.raises(SensitivityError):
        total.add(make())
    assert total.count == 0


def test_peers_bug_sensitivity_is_a_knob_independent_of_the_clip() -> None:
    mechanism = GaussianMechanism(noise_multiplier=1.0, clipping_norm=0.5)
    assert mechanism.noise_stddev == 0.5
    assert mechanism.sensitivity(NeighboringRelation.ADD_OR_REMOVE_ONE) == 0.5
    assert mechanism.sensitivity(NeighboringRelation.REPLACE_ONE) == 1.0
    with pytest.raises(SensitivityError, match=r"bound=1\.0"):
        mechanism.release(
            ClippedSum(dimension=2, clipping_norm=1.0),
            expected_count=1.0,
            source=NoiseSource.seeded(1),
        )


def test_a_sum_is_released_once() -> None:
    total = ClippedSum(dimension=2, clipping_norm=1.0)
    release(total)
    with pytest.raises(SensitivityError, match="already released"):
        release(total)
    with pytest.raises(SensitivityError, match="already released"):
        total.add(clipped([0.1, 0.1]))


def test_the_release_carries_the_event_that_it_costs() -> None:
    mechanism = GaussianMechanism(noise_multiplier=1.5, clipping_norm=2.0, sampling_probability=0.1)
    total = ClippedSum(dimension=3, clipping_norm=2.0)
    result = mechanism.release(total, expected_count=100.0, source=NoiseSource.from_os())
    assert result.event == GaussianEvent(noise_multiplier=1.5, sampling_probability=0.1)
    assert result.noise_stddev == pytest.approx(0.03)
    assert result.noise_source == "os-entropy"
    assert result.vector.dtype == np.float32


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, True, "1", None])
def test_the_denominator_is_finite_and_positive(bad: Any) -> None:
    total = ClippedSum(dimension=1, clipping_norm=1.0)
    with pytest.raises(InvalidValue, match="expected_count"):
        release(total, expected=bad)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_a_dimension_is_a_positive_integer(bad: Any) -> None:
    with pytest.raises(InvalidValue, match="dimension"):
        ClippedSum(dimension=bad, clipping_norm=1.0)
