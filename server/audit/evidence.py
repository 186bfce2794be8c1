"""Readers of stored evidence: every value is checked, and a bad one is an audit error.

Evidence comes back from a JSON file that anybody may have edited. A reader names the key, what was
found there and what was expected; it never shows the value itself, which may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from server.audit.protocol import Floats
from shared.errors import AuditError

DERIVED = "derived"
"""Key under which a conclusion adds what it worked out; ignored when evidence is read again."""


def number(
    evidence: Mapping[str, Any], key: str, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """Return a finite number within ``[low, high]``; a boolean is not a number.

    Raises:
        AuditError: if the key is missing, or holds anything else.
    """
    value = _present(evidence, key)
    if not (_real(value) and low <= value <= high):
        _refuse(key, value, "a finite number" + _range(low, high))
    return float(value)


def integer(
    evidence: Mapping[str, Any], key: str, *, low: int | None = None, high: int | None = None
) -> int:
    """Return an integer within ``[low, high]``; neither ``True`` nor ``3.0`` is one.

    Raises:
        AuditError: if the key is missing, or holds anything else.
    """
    value = _present(evidence, key)
    least = -math.inf if low is None else low
    most = math.inf if high is None else high
    if not (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
        _refuse(key, value, "an integer" + _range(least, most))
    return int(value)


def boolean(evidence: Mapping[str, Any], key: str) -> bool:
    """Return ``True`` or ``False``; 0 and 1 are neither.

    Raises:
        AuditError: if the key is missing, or holds anything else.
    """
    value = _present(evidence, key)
    if not isinstance(value, bool):
        _refuse(key, value, "true or false")
    return value


def text(evidence: Mapping[str, Any], key: str) -> str:
    """Return a string.

    Raises:
        AuditError: if the key is missing, or holds anything else.
    """
    value = _present(evidence, key)
    if not isinstance(value, str):
        _refuse(key, value, "a string")
    return value


def numbers(evidence: Mapping[str, Any], key: str, *, size: int | None = None) -> Floats:
    """Return a list of finite numbers as an array.

    Args:
        evidence: where to look.
        key: what to look up.
        size: how many there must be; None for any number of them, none included.

    Returns:
        Shape ``(n,)``.

    Raises:
        AuditError: if the key is missing, or holds anything but such a list.
    """
    values = sequence(evidence, key)
    bad = [value for value in values if not _real(value)]
    if bad:
        _refuse(key, bad[0], "a finite number", where="an entry")
    if size is not None and len(values) != size:
        msg = f"evidence {key!r} has {len(values)} entries, expected {size}."
        raise AuditError(msg, hint=_HINT)
    return np.array(values, dtype=np.float64).reshape(-1)


def mapping(evidence: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object whose keys are strings.

    Raises:
        AuditError: if the key is missing, or holds anything else.
    """
    value = _present(evidence, key)
    if not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
        _refuse(key, value, "an object")
    return value


def mappings(evidence: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return a list of objects whose keys are strings.

    Raises:
        AuditError: if the key is missing, or holds anything else.
    """
    return [mapping({key: entry}, key) for entry in sequence(evidence, key)]


def sequence(evidence: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return a list, of whatever entries; a string is not a list.

    Raises:
        AuditError: if the key is missing, or holds anything else.
    """
    value = _present(evidence, key)
    if not isinstance(value, list | tuple):
        _refuse(key, value, "a list")
    return value


def optional_number(evidence: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number, or None where the key is missing or holds null.

    Raises:
        AuditError: if it holds anything else.
    """
    return None if evidence.get(key) is None else number(evidence, key)


def stored(values: Floats, *, digits: int = 6) -> list[float]:
    """Return an array as evidence holds it: a list of numbers, rounded.

    Raises:
        AuditError: if a value is not finite, which JSON cannot say.
    """
    if not np.isfinite(values).all():
        msg = f"{np.count_nonzero(~np.isfinite(values))} measured values are not finite."
        raise AuditError(msg)
    # Adding zero turns -0.0 into 0.0.
    return [round(float(value), digits) + 0.0 for value in np.ravel(values)]


_HINT = "The report was changed or written by another version."


def _present(evidence: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401
    """Return what a key holds, whatever it is."""
    if key not in evidence:
        msg = f"evidence {key!r} is missing."
        raise AuditError(msg, hint=_HINT)
    return evidence[key]


def _real(value: object) -> bool:
    """Tell whether a value is a finite number that a float can hold, and not a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _range(low: float, high: float) -> str:
    """Return a range in words; nothing where every number will do."""
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f" >= {low:g}"
    return f" <= {high:g}" if math.isinf(low) else f" from {low:g} to {high:g}"


def _refuse(key: str, value: object, expected: str, *, where: str = "it") -> NoReturn:
    """Raise the error for one bad value, without showing it."""
    found = type(value).__name__
    if isinstance(value, float) and not math.isfinite(value):
        found = "a float that is not finite"
    msg = f"evidence {key!r}: {where} is {found}, expected {expected}."
    raise AuditError(msg, hint=_HINT)
