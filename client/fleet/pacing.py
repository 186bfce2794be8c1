"""When to ask again: often while answers are due, seldom while nothing happens, never in step."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

SHORTEST: Final = 0.1
LONGEST_ACTIVE: Final = 1.0
# A pause is this share of the time since something happened: a round is late by it at most.
_SHARE: Final = 0.1
_JITTER: Final = 0.25
_RESOLUTION: Final = 1 << 20


def jittered(seconds: float) -> float:
    """Return a time up to a quarter shorter or longer, so that nodes do not ask together."""
    return seconds * (1 + _JITTER * (2 * secrets.randbelow(_RESOLUTION) / _RESOLUTION - 1))


class Pace:
    """How long to wait between two questions for work.

    A tenth of the time since the last message, within bounds: after a round of seconds the next is
    noticed in a tenth of a second, and a fleet that waits for hours is quiet.

    Args:
        idle_seconds: longest pause while no run is known.
        clock: monotonic, in seconds.
    """

    def __init__(self, *, idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle = max(idle_seconds, SHORTEST)
        self._clock = clock
        self._last = clock() - idle_seconds / _SHARE

    def message(self) -> None:
        """Note that something happened."""
        self._last = self._clock()

    def pause(self, *, active: bool) -> float:
        """Return how long to wait now, in seconds.

        Args:
            active: whether a run is known to go on.
        """
        longest = min(LONGEST_ACTIVE, self._idle) if active else self._idle
        wanted = _SHARE * (self._clock() - self._last)
        return jittered(min(max(SHORTEST, wanted), longest))


class Backoff:
    """Growing pauses between attempts that fail.

    Args:
        first: the first pause, in seconds.
        longest: no pause is longer, but for jitter.
        factor: growth.
    """

    def __init__(self, *, first: float, longest: float, factor: float = 1.7) -> None:
        self._first = first
        self._longest = longest
        self._factor = factor
        self._next = first

    def pause(self) -> float:
        """Return the next pause, in seconds."""
        now, self._next = self._next, min(self._next * self._factor, self._longest)
        return jittered(now)

    def reset(self) -> None:
        """Start again from the first pause."""
        self._next = self._first
