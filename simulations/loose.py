"""Readers of reports that may be newer or older than this program: what is missing is nothing.

A page is written from files that anybody may have edited, and must never fail on them. Conclusions
are not drawn from what is read here; :mod:`server.audit.evidence` has the readers for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 100_000
"""Most numbers of one array that are looked at."""

LARGEST = 1e15
"""Numbers beyond this are no measurements; no axis could show them."""


def dig(value: object, *keys: str) -> object:
    """Return what lies under a path of keys, or None."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def table(value: object, *keys: str) -> Mapping[str, Any]:
    """Return a mapping with string keys; empty if there is none."""
    found = dig(value, *keys)
    if not isinstance(found, Mapping):
        return {}
    return {str(key): entry for key, entry in found.items()}


def tables(value: object, *keys: str) -> list[Mapping[str, Any]]:
    """Return the mappings in a list; empty if there is none."""
    return [entry for entry in items(value, *keys) if isinstance(entry, Mapping)]


def items(value: object, *keys: str) -> list[Any]:
    """Return a list; empty if there is none."""
    found = dig(value, *keys)
    return list(found[:MOST]) if isinstance(found, list | tuple) else []


def number(value: object, *keys: str) -> float | None:
    """Return a finite number, or None; a boolean is not a number."""
    found = dig(value, *keys)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return as_float(found)


def as_float(value: float) -> float | None:
    """Return a number as a float, or None if it is not finite or too large to be drawn.

    JSON may hold integers of any length.
    """
    return float(value) if -LARGEST <= value <= LARGEST else None


def numbers(value: object, *keys: str) -> NDArray[np.float64]:
    """Return the finite numbers of a list; empty if there is none."""
    found = [number({"n": entry}, "n") for entry in items(value, *keys)]
    return np.array([entry for entry in found if entry is not None], dtype=np.float64)


def pair(value: object, *keys: str) -> tuple[float, float] | None:
    """Return an interval, or None."""
    found = numbers(value, *keys)
    return (float(found[0]), float(found[1])) if found.size == 2 else None


def text(value: object, *keys: str) -> str:
    """Return a string; empty if there is none."""
    found = dig(value, *keys)
    return found if isinstance(found, str) else ""


def names(value: object, *keys: str) -> Sequence[str]:
    """Return the strings of a list."""
    return [entry for entry in items(value, *keys) if isinstance(entry, str)]
