"""Updates are bounded or zero, whatever training left behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.update import clipped_update, make_update, noised_update, plain_update
from shared.errors import InvalidValue, SensitivityError
from shared.privacy.mechanism import AdapterDelta, ClippedDelta

ANY_VECTOR = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=True)
)


@given(after=ANY_VECTOR, bound=st.floats(1e-6, 1e6))
def test_a_clipped_update_is_within_its_bound_or_zero(
    after: np.ndarray[tuple[int], np.dtype[np.float32]], bound: float
) -> None:
    before = np.zeros_like(after)
    update = clipped_update(before, after, clipping_norm=bound)
    norm = math.sqrt(math.fsum(float(x) ** 2 for x in update.vector))
    assert norm <= bound * (1 + 1e-12)
    assert update.bound == bound
    if not np.isfinite(after).all():
        assert not update.vector.any()


@given(after=ANY_VECTOR)
def test_no_mode_lets_a_non_finite_update_out(
    after: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> None:
    before = np.ones_like(after)
    for update in (plain_update(before, after), noised_update(before, after)):
        assert np.isfinite(update).all()
        if not np.isfinite(after).all():
            assert not update.any()


def test_a_finite_difference_that_overflows_is_zero() -> None:
    big = np.array([3e38, 1.0], dtype=np.float32)
    assert not plain_update(-big, big).any()


def test_the_change_is_after_minus_before() -> None:
    before = np.array([1.0, 2.0], dtype=np.float32)
    after = np.array([1.5, 0.0], dtype=np.float32)
    assert plain_update(before, after).tolist() == [0.5, -2.0]
    assert noised_update(before, after).tolist() == [0.5, -2.0]
    inside = clipped_update(before, after, clipping_norm=10.0)
    assert inside.vector.tolist() == [0.5, -2.0]


def test_the_stage_follows_from_the_clipping_norm() -> None:
    before, after = np.zeros(3, dtype=np.float32), np.ones(3, dtype=np.float32)
    assert isinstance(make_update(before, after, clipping_norm=None), AdapterDelta)
    clipped = make_update(before, after, clipping_norm=0.5)
    assert isinstance(clipped, ClippedDelta)
    assert float(np.linalg.norm(clipped.vector)) == pytest.approx(0.5, rel=1e-6)


def test_shapes_and_bounds_are_checked() -> None:
    two, three = np.zeros(2, dtype=np.float32), np.zeros(3, dtype=np.float32)
    with pytest.raises(SensitivityError, match="shape"):
        plain_update(two, three)
    with pytest.raises(InvalidValue):
        clipped_update(two, two, clipping_norm=math.nan)
