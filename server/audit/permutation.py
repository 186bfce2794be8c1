"""Many permutation tests at the price of one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy.stats import rankdata

from server.audit.protocol import Floats
from server.audit.stats import PERMUTATIONS
from shared import validate
from shared.errors import TooFewCanaries
from shared.seeding import data_rng

K = TypeVar("K", bound=Hashable)

_CHUNK = 1_000_000
"""Most labels that are drawn at once."""


def permutation_p_values(
    pairs: Mapping[K, tuple[Floats, Floats]], *, seed: int, permutations: int = PERMUTATIONS
) -> dict[K, float]:
    """Return one-sided p-values of "members do not score higher", as many as there are pairs.

    Each test is that of :func:`server.audit.stats.permutation_p_value`: the Mann-Whitney sum of
    mid-ranks, the identity among the permutations, exact for any distribution and any ties. Pairs
    of equal sizes share their permutations, which costs nothing: each p-value is valid on its own,
    and a correction for their number must hold for dependent tests anyway.

    Args:
        pairs: members' and non-members' scores, by whatever key.
        seed: of the permutations.
        permutations: how many, besides the identity.

    Raises:
        TooFewCanaries: if a side is empty.
    """
    validate.positive_integer(permutations=permutations)
    groups: dict[tuple[int, int], list[K]] = {}
    for key, (inside, outside) in pairs.items():
        if not min(inside.size, outside.size) >= 1:
            msg = f"n_in={inside.size}, n_out={outside.size}, expected at least 1 each."
            raise TooFewCanaries(msg)
        groups.setdefault((inside.size, outside.size), []).append(key)
    found: dict[K, float] = {}
    for sizes, keys in groups.items():
        ranks = np.stack([rankdata(np.concatenate(pairs[key])) for key in keys], axis=1)
        extreme = _extreme(ranks, *sizes, seed=seed, permutations=permutations)
        shares = (1 + extreme) / (1 + permutations)
        found.update(zip(keys, shares.tolist(), strict=True))
    return {key: found[key] for key in pairs}


def _extreme(ranks: Floats, n_in: int, n_out: int, *, seed: int, permutations: int) -> Floats:
    """Count the permutations that give the members a sum of ranks as high as they have.

    Args:
        ranks: mid-ranks, members first, shape ``(n_in + n_out, tests)``.
        n_in: number of members.
        n_out: number of non-members.
        seed: of the permutations.
        permutations: how many.

    Returns:
        Counts, shape ``(tests,)``.
    """
    rng = data_rng(seed, "permutations", n_in, n_out)
    # Sums of half-integers are exact in floating point, so equal sums compare as equal.
    observed = ranks[:n_in].sum(axis=0)
    labels = np.zeros(n_in + n_out)
    labels[:n_in] = 1.0
    extreme = np.zeros(ranks.shape[1])
    left = permutations
    while left:
        rows = min(left, max(1, _CHUNK // labels.size))
        drawn = rng.permuted(np.broadcast_to(labels, (rows, labels.size)), axis=1)
        extreme += np.count_nonzero(drawn @ ranks >= observed, axis=0)
        left -= rows
    return extreme
