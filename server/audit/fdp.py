"""The one-run bound for mechanisms with a Gaussian trade-off curve.

Mahloujifar, Melis and Chaudhuri, "Auditing f-Differential Privacy in One Run" (2024,
arXiv:2410.22235), algorithm 3 for two outcomes per coin. It certifies more than the general bound
of :mod:`server.audit.onerun` from the same guesses, because it assumes more: that the mechanism's
trade-off curve is that of a Gaussian. It is named *parametric* wherever it is shown.
"""

from __future__ import annotations

from scipy import optimize, special

from server.audit import gdp
from shared import validate
from shared.errors import InvalidValue

_LARGEST_MU = 64.0


def excess(*, m: int, guesses: int, correct: int, mu: float, alpha: float = 0.05) -> float:
    """Return by how much the guesses contradict mu-GDP; it is rejected where this is >= 0.

    The recursion bounds, one right guess at a time, what a mu-GDP mechanism can give if so many
    right guesses have probability alpha or more; where the probabilities do not fit below
    ``guesses / m`` there is no such mechanism.

    Args:
        m: canaries with a coin.
        guesses: guesses made; the rest abstained.
        correct: guesses that were right.
        mu: hypothesised mu.
        alpha: level of the test.

    Raises:
        InvalidValue: unless ``0 <= correct <= guesses <= m``, mu >= 0 and alpha lies in (0, 1).
    """
    validate.positive_integer(m=m, guesses=guesses)
    validate.non_negative(mu=mu)
    validate.open_unit(alpha=alpha)
    if not 0 <= correct <= guesses <= m:
        msg = f"correct={correct}, guesses={guesses}, m={m}, expected correct <= guesses <= m."
        raise InvalidValue(msg)
    right = alpha * correct / m
    wrong = alpha * (guesses - correct) / m
    for step in range(correct - 1, -1, -1):
        grown = max(wrong, float(special.ndtr(special.ndtri(right) - mu)))
        if grown == wrong:
            break  # right stays as it is, and so does everything after it
        right = min(1.0, right + step / (guesses - step) * (grown - wrong))
        wrong = grown
    return right + wrong - guesses / m


def mu_lower_bound(*, m: int, guesses: int, correct: int, alpha: float = 0.05) -> float:
    """Return the largest mu that the guesses reject at level alpha; 0 if they reject none.

    Raises:
        InvalidValue: as :func:`excess`.
    """

    def margin(mu: float) -> float:
        return excess(m=m, guesses=guesses, correct=correct, mu=mu, alpha=alpha)

    if margin(0.0) <= 0:
        return 0.0
    if margin(_LARGEST_MU) >= 0:
        return _LARGEST_MU
    return float(optimize.brentq(margin, 0.0, _LARGEST_MU, xtol=1e-9))


def epsilon_lower_bound(
    *, m: int, guesses: int, correct: int, delta: float, alpha: float = 0.05
) -> float:
    """Return the lower bound on mu as a lower bound on epsilon at delta, parametric.

    Raises:
        InvalidValue: as :func:`excess`, or for a delta outside (0, 1).
    """
    found = mu_lower_bound(m=m, guesses=guesses, correct=correct, alpha=alpha)
    return gdp.epsilon(found, delta)
