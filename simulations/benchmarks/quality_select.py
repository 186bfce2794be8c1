"""Words that choose cases: ``shakespeare``, ``policy=ffa``, ``epsilon=8``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.errors import InvalidValue
from shared.registry import suggestion

Axes = Mapping[str, Sequence[str]]


def selected(axes: Axes, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of every axis that some words leave in.

    Words about one axis add up, words about several narrow down; an axis that no word is about
    keeps all its values.

    Args:
        axes: the values of each axis, in order.
        words: a value, or ``axis=value`` where two axes share a value.

    Raises:
        InvalidValue: for a word that names no value, or one of several axes.
    """
    found: dict[str, set[str]] = {}
    for word in words:
        axis, value = _read(axes, word)
        found.setdefault(axis, set()).add(value)
    return {
        axis: tuple(value for value in values if axis not in found or value in found[axis])
        for axis, values in axes.items()
    }


def _read(axes: Axes, word: str) -> tuple[str, str]:
    """Return the axis and the value that a word names."""
    axis, equals, value = word.partition("=")
    if equals and value in axes.get(axis, ()):
        return axis, value
    homes = [] if equals else [name for name, values in axes.items() if word in values]
    if len(homes) == 1:
        return homes[0], word
    if homes:
        both = " or ".join(f"--only {name}={word}" for name in homes)
        msg = f"--only {word!r} is a value of several axes: {', '.join(homes)}."
        raise InvalidValue(msg, hint=f"Say which: {both}")
    full = [f"{name}={value}" for name, values in axes.items() for value in values]
    bare = [value for values in axes.values() for value in values]
    msg = f"--only {word!r}, expected one of: {', '.join(full)}."
    raise InvalidValue(msg, hint=suggestion(word, full if equals else bare))
