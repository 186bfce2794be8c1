"""Seeded choices for generated text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from shared.seeding import derive_seed

T = TypeVar("T")


class Draw:
    """A seeded source of choices that gives the same answers on every Python and platform.

    Only ``random.Random.random`` is used: it is the one method whose sequence the standard
    library promises to keep between versions, and committed weights and logs depend on it.
    Never a source of privacy noise.
    """

    __slots__ = ("_uniform",)

    def __init__(self, seed: int, *labels: int | str) -> None:
        """Open the stream that ``seed`` and ``labels`` name.

        Raises:
            InvalidValue: if the seed is not an integer.
        """
        generator = random.Random(derive_seed(seed, *labels))  # noqa: S311 - text, not noise
        self._uniform = generator.random

    def below(self, bound: int) -> int:
        """Return an integer in ``[0, bound)``."""
        return int(self._uniform() * bound)

    def between(self, low: int, high: int) -> int:
        """Return an integer in ``[low, high]``, both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._uniform() < probability

    def pick(self, items: Sequence[T]) -> T:
        """Return one element."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return the elements at ``count`` different positions, in random order."""
        pool = list(items)
        for index in range(count):
            other = index + self.below(len(pool) - index)
            pool[index], pool[other] = pool[other], pool[index]
        return pool[:count]
