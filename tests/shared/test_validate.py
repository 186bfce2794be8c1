"""Guards against numbers that are none, and against NaN walking through a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import validate
from shared.errors import InvalidValue

Guard = Callable[..., None]

# guard -> the set it should accept, said independently of how the guard is written
RANGES: dict[Guard, Callable[[float], bool]] = {
    validate.finite: lambda x: not math.isinf(x),
    validate.positive: lambda x: 0 < x < math.inf,
    validate.non_negative: lambda x: 0 <= x < math.inf,
    validate.probability: lambda x: 0 < x <= 1,
    validate.open_unit: lambda x: 0 < x < 1,
}
GUARDS = [pytest.param(guard, id=guard.__name__) for guard in RANGES]


def accepts(guard: Guard, value: Any) -> bool:
    try:
        guard(value=value)
    except InvalidValue:
        return False
    return True


@pytest.mark.parametrize("guard", [*GUARDS, validate.positive_integer])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, False, "1", None, 1j, [1]])
def test_what_is_no_finite_number_is_refused(guard: Guard, value: object) -> None:
    assert not accepts(guard, value)


@pytest.mark.parametrize("guard", GUARDS)
@given(value=st.floats(allow_nan=False) | st.floats(-2, 2) | st.integers(-3, 3))
def test_a_guard_accepts_exactly_its_range(guard: Guard, value: float) -> None:
    assert accepts(guard, value) == RANGES[guard](value)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, math.nextafter(1.0, 2.0), 5e-324])
@pytest.mark.parametrize("guard", GUARDS)
def test_the_edges(guard: Guard, value: float) -> None:
    assert accepts(guard, value) == RANGES[guard](value)


@given(value=st.integers())
def test_positive_integers(value: int) -> None:
    assert accepts(validate.positive_integer, value) == (value >= 1)


def test_a_float_is_no_integer() -> None:
    assert not accepts(validate.positive_integer, 2.0)


def test_the_first_bad_value_is_named() -> None:
    with pytest.raises(InvalidValue, match=r"^delta=1\.5, expected a number in \(0, 1\)\.$"):
        validate.open_unit(alpha=0.5, delta=1.5, gamma=math.nan)
