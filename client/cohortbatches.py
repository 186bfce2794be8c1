"""Batches of examples of many clients: of similar length, and of a bounded number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from client.examples import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray


def by_length(examples: Sequence[Example], *, tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of batches of similar length, shortest first, which wastes least padding.

    Args:
        examples: in any order; equal lengths keep their order.
        tokens: what a batch may come to with its padding; a longer example is a batch alone.
    """
    sizes = np.array([example.ids.size for example in examples], dtype=np.int64)
    order = np.argsort(sizes, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * sizes[order[stop]] <= tokens:
            stop += 1
        yield order[start:stop]
        start = stop
