"""Ranks of planted secrets among secrets that were never planted, and what they prove.

Losses are nats; a lower loss is a likelier text. Ties always count against the canary.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from server.audit import skewnormal
from server.audit.protocol import Floats
from server.audit.stats import PERMUTATIONS
from shared.errors import InvalidValue, TooFewCanaries

CHANCE_BITS = 1 / math.log(2)
"""Mean exposure of a secret that the model never saw, for many references."""

MIN_BLOCK = 8
"""Fewest references of its own that a canary needs for a p-value of its own."""

_CHUNK = 1_000_000


def exposure(losses: Floats, references: Floats, *, space: int | None = None) -> Floats:
    """Return the exposure of each canary, in bits, by sampling.

    The rank of a canary is one more than the number of references that the model finds at least as
    likely. By default the canary counts itself among the candidates, so that
    ``2^-exposure = rank / (|Q| + 1)`` is an exact p-value and the ceiling is ``log2(|Q| + 1)``.

    Args:
        losses: shape ``(n,)``.
        references: shape ``(|Q|,)``, losses of fresh secrets.
        space: number of candidates; ``|Q|`` gives the convention of the Secret Sharer code.

    Returns:
        Shape ``(n,)``.

    Raises:
        InvalidValue: without references, or if ``space`` is below their number.
    """
    candidates = references.size + 1 if space is None else space
    if not (references.size >= 1 and candidates >= references.size):
        msg = f"references={references.size}, space={candidates}, expected 1 <= references <= space"
        raise InvalidValue(msg)
    rank = 1 + np.searchsorted(np.sort(references), losses, side="right")
    return np.asarray(np.log2(candidates / rank), dtype=np.float64)


def exposure_in_space(losses: Floats, space: Floats) -> Floats:
    """Return the exposure of each canary, in bits, by full enumeration.

    Args:
        losses: shape ``(n,)``, of canaries that are themselves members of the space.
        space: shape ``(|R|,)``, losses of every secret there could be.

    Returns:
        Shape ``(n,)``; ``log2 |R|`` for a secret that the model finds likelier than all others.

    Raises:
        InvalidValue: without a space, or if no member of it has the loss of a canary.
    """
    order = np.sort(space)
    rank = np.searchsorted(order, losses, side="right")
    if not (space.size >= 1 and np.isin(losses, order).all()):
        msg = f"space={space.size} secrets, expected every canary to be one of them."
        raise InvalidValue(msg)
    return np.asarray(np.log2(space.size / rank), dtype=np.float64)


def extrapolated(losses: Floats, references: Floats, *, ceiling: float = 64.0) -> Floats | None:
    """Return the exposure of each canary, in bits, from a skew-normal curve.

    Args:
        losses: shape ``(n,)``.
        references: shape ``(|Q|,)``, losses of fresh secrets.
        ceiling: most bits to report, for a tail that nobody has seen.

    Returns:
        Shape ``(n,)``; None where the references are all alike or too few for a curve.
    """
    if not references.size >= skewnormal.MIN_LOSSES:
        return None
    curve = skewnormal.fit(references)
    if curve is None:
        return None
    bits = np.array([-curve.log_cdf(float(loss)) / math.log(2) for loss in losses])
    return np.asarray(np.clip(bits, 0.0, ceiling), dtype=np.float64)


def block_p_values(losses: Floats, references: Floats, *, seed: int) -> Floats | None:
    """Return one p-value per canary, each from references of its own.

    Ranking all canaries among the same references makes their p-values dependent: one lucky set of
    references favours them all. Here the references are shuffled and dealt out in equal disjoint
    blocks, so that under chance the p-values are independent and each is at least uniform.

    Args:
        losses: shape ``(n,)``.
        references: shape ``(|Q|,)``.
        seed: of the shuffle.

    Returns:
        Shape ``(n,)``; None where a block would have fewer than :data:`MIN_BLOCK` references.
    """
    size = references.size // losses.size if losses.size else 0
    if size < MIN_BLOCK:
        return None
    dealt = np.random.default_rng(seed).permutation(references)[: size * losses.size]
    ahead = (dealt.reshape(losses.size, size) <= losses[:, None]).sum(axis=1)
    return np.asarray((1.0 + ahead) / (size + 1.0), dtype=np.float64)


def fisher(p_values: Floats) -> float:
    """Combine independent p-values by Fisher's method: ``-2 sum ln p`` against chi-squared.

    Raises:
        InvalidValue: without p-values, or for one outside (0, 1].
    """
    if not (p_values.size >= 1 and bool(np.all((p_values > 0) & (p_values <= 1)))):
        msg = f"{p_values.size} p-values, expected at least one, all in (0, 1]."
        raise InvalidValue(msg)
    return float(special.chdtrc(2 * p_values.size, -2 * float(np.log(p_values).sum())))


def mean_permutation_p_value(
    included: Floats, held_out: Floats, *, seed: int, permutations: int = PERMUTATIONS
) -> float:
    """Return the one-sided p-value of "included canaries have no more bits on average".

    The statistic is the sum of bits, so that a few secrets that are known well weigh as much as
    many that are known a little. Labels are permuted with the two sizes fixed, which is exact
    whatever the distribution of bits, the same references for all included. The identity counts as
    a permutation.

    Raises:
        TooFewCanaries: if a side is empty.
    """
    if not min(included.size, held_out.size) >= 1:
        msg = f"n_in={included.size}, n_out={held_out.size}, expected at least 1 each."
        raise TooFewCanaries(msg)
    both = np.concatenate([included, held_out])
    observed = both[: included.size].sum()
    rng = np.random.default_rng(seed)
    extreme, left = 0, permutations
    while left:
        batch = min(left, max(1, _CHUNK // both.size))
        drawn = rng.permuted(np.broadcast_to(both, (batch, both.size)), axis=1)
        extreme += int(np.count_nonzero(drawn[:, : included.size].sum(axis=1) >= observed - 1e-9))
        left -= batch
    return (1 + extreme) / (1 + permutations)
