"""What right guesses about fair coins prove: the theorem behind the one-run audit.

Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run" (2023,
arXiv:2305.08846). Each of ``m`` canaries was included by its own fair coin. The auditor guesses
the coins of ``r`` of them and is right ``v`` times; under (epsilon, delta)-DP that many right
guesses are unlikely, and the p-value bounds how unlikely.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from server.audit.protocol import Floats
from shared import validate
from shared.errors import InvalidValue

_LARGEST_EPSILON = 128.0


def guesses_per_side(m: int) -> int:
    """Return how many canaries are called "in", and as many "out": m/8, or m/10 from 1000 on."""
    validate.positive_integer(m=m)
    return max(1, m // 8 if m < 1000 else m // 10)


def correct_guesses(scores_in: Floats, scores_out: Floats, *, per_side: int, seed: int) -> int:
    """Guess "in" for the highest scores and "out" for the lowest, and count the right ones.

    Ties are broken by a seeded shuffle of all canaries together. Leaving them in the order in
    which the two sides are listed would break every tie in favour of the guesser.

    Args:
        scores_in: scores of included canaries, higher for likelier members.
        scores_out: scores of held-out canaries.
        per_side: guesses of each kind.
        seed: seed of the shuffle.

    Raises:
        InvalidValue: if there are more guesses than canaries.
    """
    total = scores_in.size + scores_out.size
    if not 1 <= 2 * per_side <= total:
        msg = f"guesses={2 * per_side}, expected 2 to {total}, the number of canaries."
        raise InvalidValue(msg)
    scores = np.concatenate([scores_in, scores_out])
    member = np.arange(total) < scores_in.size
    shuffled = np.random.default_rng(seed).permutation(total)
    order = shuffled[np.argsort(scores[shuffled], kind="stable")]
    right_in = np.count_nonzero(member[order[-per_side:]])
    right_out = np.count_nonzero(~member[order[:per_side]])
    return int(right_in + right_out)


def p_value(*, m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return the p-value of the hypothesis "(epsilon, delta)-DP" (Steinke et al., theorem 5.2).

    Args:
        m: canaries with a coin.
        guesses: guesses made; the rest abstained.
        correct: guesses that were right. Zero right guesses are no evidence: p = 1.
        epsilon: hypothesised epsilon.
        delta: hypothesised delta, zero allowed.

    Raises:
        InvalidValue: unless ``0 <= correct <= guesses <= m``, epsilon >= 0 and 0 <= delta < 1.
    """
    _check_counts(m, guesses, correct)
    validate.non_negative(epsilon=epsilon, delta=delta)
    if correct == 0:
        return 1.0
    q = float(special.expit(epsilon))
    beta = float(special.betainc(correct, guesses - correct + 1, q))
    if delta == 0:
        return min(1.0, beta)
    steps = np.arange(1, correct + 1)
    # P[v - i <= Bin <= v - 1] as a difference of upper tails; P[Bin >= 0] is 1.
    starts = correct - steps
    tails = np.ones(correct)
    tails[starts > 0] = special.betainc(starts[starts > 0], guesses - starts[starts > 0] + 1, q)
    worst = float(((tails - beta) / steps).max())
    return min(1.0, beta + 2 * m * delta * worst)


def epsilon_lower_bound(
    *, m: int, guesses: int, correct: int, delta: float, alpha: float = 0.05
) -> float:
    """Return the largest epsilon that the guesses reject at level alpha; 0 if they reject none.

    With every guess right this is the ceiling: no attacker can certify more with these counts.

    Raises:
        InvalidValue: as :func:`p_value`, or for an alpha outside (0, 1).
    """
    validate.open_unit(alpha=alpha)

    def rejected(epsilon: float) -> bool:
        p = p_value(m=m, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return p < alpha

    if not rejected(0.0):
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _check_counts(m: int, guesses: int, correct: int) -> None:
    """Refuse counts that no experiment can give."""
    validate.positive_integer(m=m, guesses=guesses)
    if not 0 <= correct <= guesses <= m:
        msg = f"correct={correct}, guesses={guesses}, m={m}, expected correct <= guesses <= m."
        raise InvalidValue(msg)
