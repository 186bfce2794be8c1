"""Comparing two models on the same prompts: tests and intervals for paired counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import special, stats

from server.audit.protocol import Floats
from shared import validate
from shared.errors import InvalidValue

EXACT_UP_TO = 14
DRAWS = 9_999


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Return the exact one-sided p-value of McNemar's test that gains are no likelier than losses.

    Args:
        gained: prompts that leak with the adapter only.
        lost: prompts that leak with the base model only.

    Returns:
        ``P[Bin(gained + lost, 1/2) >= gained]``; 1 without discordant pairs.
    """
    _counts(gained=gained, lost=lost)
    return min(1.0, float(stats.binom.sf(gained - 1, gained + lost, 0.5)))


def paired_interval(
    *, both: int, gained: int, lost: int, neither: int, alpha: float
) -> tuple[float, float]:
    """Return a ``1 - alpha`` interval of the difference of two paired proportions.

    Newcombe (1998, Statistics in Medicine 17, 2635, method 10): score intervals of the two
    proportions, joined through their correlation. Unlike a bootstrap it is not a point where no
    pair differs. Coverage is approximate.

    Args:
        both: pairs with a success on both sides.
        gained: pairs with a success on the first side only.
        lost: pairs with a success on the second side only.
        neither: pairs without a success.
        alpha: one minus the coverage.

    Returns:
        Interval of first minus second, within [-1, 1].

    Raises:
        InvalidValue: without pairs.
    """
    _counts(both=both, gained=gained, lost=lost, neither=neither)
    n = both + gained + lost + neither
    if not n >= 1:
        msg = "pairs=0, expected at least 1."
        raise InvalidValue(msg)
    validate.open_unit(alpha=alpha)
    first, second = (both + gained) / n, (both + lost) / n
    low_first, high_first = wilson(both + gained, n, alpha=alpha)
    low_second, high_second = wilson(both + lost, n, alpha=alpha)
    phi = _correlation(both, gained, lost, neither)
    below = _joined(first - low_first, high_second - second, phi)
    above = _joined(high_first - first, second - low_second, phi)
    value = first - second
    return max(-1.0, value - below), min(1.0, value + above)


def wilson(successes: int, trials: int, *, alpha: float) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927)."""
    z = float(special.ndtri(1 - alpha / 2))
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def sign_flip_p_value(differences: Floats, *, seed: int) -> float:
    """Return the one-sided p-value that differences are not positive in sum.

    If adapter and base leak alike, each prompt's difference is as likely as its negative, however
    the attacks on one prompt hang together: prompts are the units, attacks are not. Exact up to
    :data:`EXACT_UP_TO` differences that are not zero, by :data:`DRAWS` draws beyond (the identity
    counts as one more, so the p-value is never zero).

    Args:
        differences: shape ``(prompts,)``.
        seed: of the draws.
    """
    moved = np.asarray(differences, dtype=np.float64)
    moved = moved[moved != 0]
    if moved.size == 0:
        return 1.0
    observed = moved.sum() - 1e-9
    if moved.size <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=moved.size)))
        return float(np.mean(signs @ moved >= observed))
    rng = np.random.default_rng(seed)
    drawn = rng.choice((-1.0, 1.0), size=(DRAWS, moved.size)) @ moved
    return (1 + int(np.count_nonzero(drawn >= observed))) / (1 + DRAWS)


def holm(p_values: dict[str, float], *, alpha: float) -> list[str]:
    """Return the names of the tests that Holm's procedure rejects, at ``alpha`` all together."""
    rejected = []
    ordered = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    for rank, (name, p_value) in enumerate(ordered):
        if not p_value <= alpha / (len(ordered) - rank):
            break
        rejected.append(name)
    return rejected


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Return Newcombe's phi: corrected for continuity where positive, 0 where undefined."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    n = both + gained + lost + neither
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(0.0, excess - n / 2)
    return excess / math.sqrt(margins)


def _joined(first: float, second: float, phi: float) -> float:
    """Return the half-width of a difference from two half-widths and their correlation."""
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def _counts(**values: int) -> None:
    """Refuse what is no count."""
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, int) and value >= 0):
            msg = f"{name}={value!r}, expected a count."
            raise InvalidValue(msg)
