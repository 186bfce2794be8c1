"""Guards that NaN, infinity, booleans and strings do not walk through.

Every guard is written positively (``isfinite(x) and lo < x``) and raises
:class:`shared.errors.InvalidValue` with the name, the value found and the range expected.
"""

from __future__ import annotations

import math

from shared.errors import InvalidValue


def finite(**values: float) -> None:
    """Require finite real numbers.

    Args:
        **values: named numbers.

    Raises:
        InvalidValue: for the first value that is not a finite real number.
    """
    for name, value in values.items():
        if not (_real(value) and math.isfinite(value)):
            _refuse(name, value, "a finite number")


def positive(**values: float) -> None:
    """Require finite numbers above zero.

    Raises:
        InvalidValue: for the first value that is not.
    """
    for name, value in values.items():
        if not (_real(value) and math.isfinite(value) and value > 0):
            _refuse(name, value, "a finite number > 0")


def non_negative(**values: float) -> None:
    """Require finite numbers of at least zero.

    Raises:
        InvalidValue: for the first value that is not.
    """
    for name, value in values.items():
        if not (_real(value) and math.isfinite(value) and value >= 0):
            _refuse(name, value, "a finite number >= 0")


def probability(**values: float) -> None:
    """Require numbers in ``(0, 1]``, as sampling probabilities are.

    Raises:
        InvalidValue: for the first value that is not.
    """
    for name, value in values.items():
        if not (_real(value) and math.isfinite(value) and 0 < value <= 1):
            _refuse(name, value, "a number in (0, 1]")


def open_unit(**values: float) -> None:
    """Require numbers in ``(0, 1)``, as delta is.

    Raises:
        InvalidValue: for the first value that is not.
    """
    for name, value in values.items():
        if not (_real(value) and math.isfinite(value) and 0 < value < 1):
            _refuse(name, value, "a number in (0, 1)")


def positive_integer(**values: int) -> None:
    """Require integers of at least one.

    Raises:
        InvalidValue: for the first value that is not.
    """
    for name, value in values.items():
        if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            _refuse(name, value, "an integer >= 1")


def _real(value: object) -> bool:
    """Tell whether a value is a real number and not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(name: str, value: object, expected: str) -> None:
    """Raise the error for one bad value."""
    msg = f"{name}={value!r}, expected {expected}."
    raise InvalidValue(msg)
