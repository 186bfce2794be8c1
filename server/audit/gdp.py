"""Gaussian differential privacy: between mu and (epsilon, delta), and mu from an attack's errors.

A mechanism is mu-GDP if telling two neighbouring data sets apart is at least as hard as telling
N(0, 1) from N(mu, 1) (Dong, Roth and Su, "Gaussian Differential Privacy", 2019). Lower bounds on
mu from an attack follow Nasr et al., "Tight Auditing of Differentially Private Machine Learning"
(2023): they assume that the mechanism has a Gaussian trade-off curve and are named *parametric*
wherever they are shown. The bound of Jagielski et al., "Auditing Differentially Private Machine
Learning" (2020), beside them assumes nothing of the kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from server.audit.protocol import Floats
from shared import validate
from shared.errors import InvalidValue, TooFewCanaries

_ROOT2 = math.sqrt(2)
_LARGEST_MU = 1e6


def delta(epsilon: float, mu: float) -> float:
    """Return the delta of a mu-GDP mechanism at epsilon.

    ``Phi(-epsilon / mu + mu / 2) - e^epsilon Phi(-epsilon / mu - mu / 2)``, without the overflow
    and the cancellation of that form.

    Raises:
        InvalidValue: for a negative or non-finite argument.
    """
    return math.exp(log_delta(epsilon, mu))


def log_delta(epsilon: float, mu: float) -> float:
    """Return the natural logarithm of :func:`delta`; ``-inf`` for ``mu = 0``.

    Raises:
        InvalidValue: for a negative or non-finite argument.
    """
    validate.non_negative(epsilon=epsilon, mu=mu)
    if mu == 0:
        return -math.inf
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    # e^epsilon Phi(-far) = e^(-near^2 / 2) erfcx(far / sqrt 2) / 2, as far^2 - near^2 = 2 epsilon.
    scaled = float(special.erfcx(far / _ROOT2))
    if near > 0:
        gap = (float(special.erfcx(near / _ROOT2)) - scaled) / 2
        return -near * near / 2 + math.log(gap) if gap > 0 else -math.inf
    value = float(special.ndtr(-near)) - math.exp(-near * near / 2) * scaled / 2
    return math.log(value) if value > 0 else -math.inf


def epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon at which a mu-GDP mechanism has this delta; 0 where any has.

    Raises:
        InvalidValue: for a negative or non-finite mu, or a delta outside (0, 1).
    """
    validate.non_negative(mu=mu)
    validate.open_unit(delta=delta)
    goal = math.log(delta)
    if log_delta(0.0, mu) <= goal:
        return 0.0
    # delta <= Phi(-epsilon / mu + mu / 2), so this epsilon is large enough.
    high = mu * (mu / 2 - float(special.ndtri(delta))) + 1e-9
    return float(
        optimize.brentq(lambda e: max(log_delta(e, mu), -1e6) - goal, 0.0, high, xtol=1e-12)
    )


def mu(epsilon: float, delta: float) -> float:
    """Return the mu whose mechanism has exactly this delta at epsilon.

    Raises:
        InvalidValue: for a negative or non-finite epsilon, or a delta outside (0, 1).
    """
    validate.non_negative(epsilon=epsilon)
    validate.open_unit(delta=delta)
    goal = math.log(delta)
    low = high = 1.0
    while log_delta(epsilon, high) < goal:
        high *= 2
        if high > _LARGEST_MU:
            msg = f"epsilon={epsilon}, delta={delta}, expected a mechanism with mu <= {_LARGEST_MU}"
            raise InvalidValue(msg)
    while log_delta(epsilon, low) > goal:
        low /= 2
    if low == high:
        return low
    return float(
        optimize.brentq(lambda m: max(log_delta(epsilon, m), -1e6) - goal, low, high, xtol=1e-13)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """How often an attack was right and wrong, at one threshold or several.

    Args:
        true_positives: shape ``(t,)``, members that were accused.
        false_positives: shape ``(t,)``, non-members that were accused.
        n_in: number of members.
        n_out: number of non-members.
    """

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    n_in: int
    n_out: int

    def __post_init__(self) -> None:
        """Refuse counts that no attack can give.

        Raises:
            InvalidValue: if a count is negative or above the number of its side.
        """
        validate.positive_integer(n_in=self.n_in, n_out=self.n_out)
        right, wrong = self.true_positives, self.false_positives
        inside = (right >= 0) & (right <= self.n_in) & (wrong >= 0) & (wrong <= self.n_out)
        if not (right.ndim == 1 and right.size >= 1 and inside.all()):
            msg = "counts of true and false positives, expected 0 to the size of each side."
            raise InvalidValue(msg)

    def error_bounds(self, alpha: float) -> tuple[Floats, Floats]:
        """Return upper bounds on false negative and false positive rates, Clopper-Pearson.

        Each holds at ``1 - alpha / 2``, so both of one threshold hold together at ``1 - alpha``.
        """
        misses = self.n_in - self.true_positives
        return (
            _upper(misses, self.n_in, alpha / 2),
            _upper(self.false_positives, self.n_out, alpha / 2),
        )


def sweep(scores_in: Floats, scores_out: Floats) -> Counts:
    """Count right and wrong accusations at thresholds whose ranks are fixed beforehand.

    Ranks 0, 1, 3, 7 and so on up to half of a side, counted from the top of the non-members and
    from the bottom of the members. A threshold taken from one side's own ranks leaves the
    Clopper-Pearson bound of that side exact, and that of the other side too, which does not depend
    on it; so a correction over these thresholds is all that their choice costs.

    Raises:
        TooFewCanaries: if a side has fewer than two scores.
    """
    n_in, n_out = scores_in.size, scores_out.size
    if not min(n_in, n_out) >= 2:
        msg = f"n_in={n_in}, n_out={n_out}, expected at least 2 each."
        raise TooFewCanaries(msg)
    above, below = _ranks(n_out), _ranks(n_in)
    members, others = np.sort(scores_in), np.sort(scores_out)
    strict = others[n_out - 1 - above]
    # Accuse what lies strictly above a non-member, or not strictly below a member: ties count
    # against the attacker on the side that the threshold came from.
    caught = n_in - np.searchsorted(members, strict, side="right")
    accused = n_out - np.searchsorted(others, members[below], side="left")
    return Counts(
        true_positives=np.concatenate([caught, n_in - below]).astype(np.int64),
        false_positives=np.concatenate([above, accused]).astype(np.int64),
        n_in=n_in,
        n_out=n_out,
    )


def mu_lower_bound(counts: Counts, *, alpha: float = 0.05) -> float:
    """Return a lower bound on mu, parametric; 0 if the attack shows nothing.

    ``Phi^-1(1 - FPR) - Phi^-1(FNR)`` with the upper bounds of both rates, the best threshold
    counted and all of them paid for (Bonferroni).

    Args:
        counts: from :func:`sweep`, or of thresholds chosen without looking.
        alpha: chance that the bound lies above mu, all thresholds together.
    """
    validate.open_unit(alpha=alpha)
    misses, wrong = counts.error_bounds(alpha / counts.true_positives.size)
    usable = (misses < 1) & (wrong < 1)
    if not usable.any():
        return 0.0
    found = -special.ndtri(wrong[usable]) - special.ndtri(misses[usable])
    return max(0.0, float(found.max()))


def ratio_lower_bound(counts: Counts, *, delta: float, alpha: float = 0.05) -> float:
    """Return a lower bound on epsilon from rates alone (Jagielski et al. 2020); 0 for nothing.

    The largest of ``ln((TPR - delta) / FPR)`` and ``ln((TNR - delta) / FNR)`` over the thresholds,
    with bounded rates and Bonferroni over the thresholds.

    It assumes that scores are independent, which in one training run they are not quite.

    Args:
        counts: from :func:`sweep`, or of thresholds chosen without looking.
        delta: in [0, 1).
        alpha: chance that the bound lies above epsilon, all thresholds together.
    """
    validate.open_unit(alpha=alpha)
    validate.non_negative(delta=delta)
    misses, wrong = counts.error_bounds(alpha / counts.true_positives.size)
    best = 0.0
    for right, error in ((1 - misses - delta, wrong), (1 - wrong - delta, misses)):
        useful = right > error
        if useful.any():
            best = max(best, float(np.log(right[useful] / error[useful]).max()))
    return best


def _upper(errors: NDArray[np.int64], trials: int, alpha: float) -> Floats:
    """Return one-sided Clopper-Pearson upper bounds at ``1 - alpha``."""
    bounds = np.ones(errors.size)
    some = errors < trials
    bounds[some] = special.betaincinv(errors[some] + 1.0, trials - errors[some], 1 - alpha)
    return bounds


def _ranks(n: int) -> NDArray[np.int64]:
    """Return 0, 1, 3, 7, ... up to half of n."""
    powers = 2 ** np.arange(int(math.log2(n)) + 1)
    return np.asarray(powers[powers - 1 <= n // 2] - 1, dtype=np.int64)
