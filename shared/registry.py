"""Names that a scenario may use, each with exactly one meaning and a "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from shared.errors import InvalidValue

T = TypeVar("T")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for a near miss, else the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """A closed table from names to things of one kind.

    Args:
        kind: what is registered, for error messages ("aggregation policy").
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register ``item`` under a name that is still free.

        Raises:
            InvalidValue: if the name is taken.
        """
        if name in self._items:
            msg = f"{self._kind} {name!r} is registered twice."
            raise InvalidValue(msg)
        self._items[name] = item
        return item

    def get(self, name: str) -> T:
        """Return the item with this name.

        Raises:
            InvalidValue: for an unknown name, with the nearest known one.
        """
        if name not in self._items:
            known = ", ".join(sorted(self._items))
            msg = f"{self._kind}={name!r}, expected one of: {known}."
            raise InvalidValue(msg, hint=suggestion(name, self._items))
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of registration."""
        return iter(self._items)

    def __contains__(self, name: object) -> bool:
        """Tell whether a name is registered."""
        return name in self._items
