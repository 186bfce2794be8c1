"""Tokenised clients, the ones used last, within a bound on bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from client.examples import Example

Tokenised = tuple[list[Example], list[Example]]

_ROOM = 64 << 20
_OVERHEAD = 300  # bytes of an example's objects beside its numbers, about


class TokenCache:
    """Keeps what the clients used last were tokenised to.

    A population that does not fit is tokenised again in every full pass over it; that costs little
    beside the pass, and memory does not grow with the population.

    Args:
        room: bytes that all clients together may take.
    """

    def __init__(self, room: int = _ROOM) -> None:
        self._room = room
        self._used = 0
        self._clients: OrderedDict[int, Tokenised] = OrderedDict()

    def get(self, index: int) -> Tokenised | None:
        """Return a client's training and held-out examples, if they are here."""
        found = self._clients.get(index)
        if found is not None:
            self._clients.move_to_end(index)
        return found

    def keep(self, index: int, examples: Tokenised) -> None:
        """Keep a client's examples; others go for them, and they too if there is no room at all."""
        self._clients[index] = examples
        self._used += _bytes(examples)
        while self._used > self._room:
            _, gone = self._clients.popitem(last=False)
            self._used -= _bytes(gone)


def _bytes(examples: Sequence[Sequence[Example]]) -> int:
    """Return about how much memory a client's examples take."""
    return sum(e.ids.nbytes + e.labels.nbytes + _OVERHEAD for side in examples for e in side)
