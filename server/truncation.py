"""The best adapter of a smaller rank, by the decomposition of each layer's small core."""

from __future__ import annotations

import numpy as np

from server.factored import balanced_at_a, decomposed
from shared.lora import AdapterSpec, Factors, Vector


def truncated(spec: AdapterSpec, narrow: AdapterSpec, vector: Vector) -> Vector:
    """Return the factors of a smaller rank whose products are nearest to those of an adapter.

    By Eckart and Young no other product of that rank is nearer in the Frobenius norm. A has
    orthonormal rows; where a product has fewer directions than the rank, A's other rows come from
    the A of the adapter and B is zero there.

    Args:
        spec: of the adapter.
        narrow: the same layers at the smaller rank.
        vector: the adapter's factors of both kinds, float32.

    Returns:
        A vector of ``narrow.size()`` elements.
    """
    before = spec.unflatten(vector)
    found: Factors = {}
    for a, b in narrow.pairs():
        rows, columns = (before[f.name].astype(np.float64) for f in (a, b))
        left, right = balanced_at_a(decomposed(columns, rows), 1.0, rows[: narrow.r])
        found[a.name], found[b.name] = right.astype(np.float32), left.astype(np.float32)
    return narrow.flatten(found)
