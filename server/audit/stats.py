"""Statistics that the audits share; each with the convention it follows.

Scores are oriented so that higher means "looks like a member". Nothing here draws from a global
generator: what is random takes a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import special

from server.audit.protocol import Floats
from shared import validate
from shared.errors import InvalidValue, TooFewCanaries

PERMUTATIONS = 9_999
"""Permutations of a test; the smallest p-value is 1 / (PERMUTATIONS + 1)."""

_CHUNK = 1_000_000

Alternative: TypeAlias = Literal["greater", "less", "two-sided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TprAtFpr:
    """The share of members found while at most ``fpr`` of the non-members are accused.

    ``value`` is None, with the reason, when there are too few non-members to see that rate.
    """

    fpr: float
    value: float | None
    interval: tuple[float, float] | None
    reason: str

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form."""
        interval = None if self.interval is None else list(self.interval)
        return {"fpr": self.fpr, "value": self.value, "interval": interval, "reason": self.reason}


def auc(scores_in: Floats, scores_out: Floats) -> float:
    """Return the Mann-Whitney AUC, ``P(in > out) + P(in = out) / 2``.

    This is the ordinary AUC, not the area under the convex hull of the ROC curve, which is never
    smaller.

    Raises:
        TooFewCanaries: if a side is empty.
    """
    return float(_placements(scores_in, scores_out).mean())


def auc_interval(
    scores_in: Floats, scores_out: Floats, *, alpha: float = 0.05
) -> tuple[float, float]:
    """Return a ``1 - alpha`` interval of the AUC.

    DeLong's variance on the logit scale. Where the sides are perfectly separated that variance is
    zero and the interval would be a point; there the score interval with the Hanley-McNeil
    variance is used instead (Newcombe 2006, method 5).

    Returns:
        Low and high, within [0, 1].

    Raises:
        TooFewCanaries: if a side has fewer than two scores.
    """
    if not min(scores_in.size, scores_out.size) >= 2:
        msg = f"n_in={scores_in.size}, n_out={scores_out.size}, expected at least 2 each."
        raise TooFewCanaries(msg)
    validate.open_unit(alpha=alpha)
    z = float(special.ndtri(1 - alpha / 2))
    over_in = _placements(scores_in, scores_out)
    over_out = 1 - _placements(scores_out, scores_in)
    value = float(over_in.mean())
    variance = float(over_in.var(ddof=1) / over_in.size + over_out.var(ddof=1) / over_out.size)
    if not (0 < value < 1 and variance > 0):
        return _score_interval(value, scores_in.size, scores_out.size, z)
    centre = math.log(value / (1 - value))
    half = z * math.sqrt(variance) / (value * (1 - value))
    return float(special.expit(centre - half)), float(special.expit(centre + half))


def tpr_at_fpr(
    scores_in: Floats, scores_out: Floats, *, fpr: float, alpha: float = 0.05
) -> TprAtFpr:
    """Return the true positive rate at a false positive rate, without interpolation.

    The threshold is the smallest one that accuses at most ``fpr`` of the non-members. Below
    ``10 / fpr`` non-members the rate rests on fewer than ten of them and is not reported. The
    interval is Clopper-Pearson for the members at that threshold.
    """
    validate.open_unit(fpr=fpr, alpha=alpha)
    needed = math.ceil(10 / fpr - 1e-9)
    if not scores_out.size >= needed:
        reason = f"needs {needed} held-out canaries, there are {scores_out.size}"
        return TprAtFpr(fpr=fpr, value=None, interval=None, reason=reason)
    allowed = math.floor(fpr * scores_out.size + 1e-9)
    # The highest score that may not be accused; a member must lie strictly above it.
    limit = np.sort(scores_out)[scores_out.size - allowed - 1]
    found = int(np.count_nonzero(scores_in > limit))
    return TprAtFpr(
        fpr=fpr,
        value=found / scores_in.size,
        interval=clopper_pearson(found, scores_in.size, alpha=alpha),
        reason="",
    )


def clopper_pearson(successes: int, trials: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Return the exact two-sided ``1 - alpha`` interval of a proportion.

    Raises:
        InvalidValue: unless ``0 <= successes <= trials`` and ``trials >= 1``.
    """
    validate.positive_integer(trials=trials)
    validate.open_unit(alpha=alpha)
    if not 0 <= successes <= trials:
        msg = f"successes={successes}, expected 0 to trials={trials}."
        raise InvalidValue(msg)
    low, high = 0.0, 1.0
    if successes > 0:
        low = float(special.betaincinv(successes, trials - successes + 1, alpha / 2))
    if successes < trials:
        high = float(special.betaincinv(successes + 1, trials - successes, 1 - alpha / 2))
    return low, high


def permutation_p_value(
    scores_in: Floats, scores_out: Floats, *, seed: int, permutations: int = PERMUTATIONS
) -> float:
    """Return the one-sided p-value of "members do not score higher".

    The statistic is the Mann-Whitney sum of mid-ranks; labels are permuted with the two sizes
    fixed, so the test is exact for any distribution of scores and any ties. The identity counts
    as a permutation, so the p-value is never zero.

    Raises:
        TooFewCanaries: if a side is empty.
    """
    validate.positive_integer(permutations=permutations)
    both = np.concatenate([scores_in, scores_out])
    if not min(scores_in.size, scores_out.size) >= 1:
        msg = f"n_in={scores_in.size}, n_out={scores_out.size}, expected at least 1 each."
        raise TooFewCanaries(msg)
    n_in = scores_in.size
    ranks = _mid_ranks(both)
    observed = ranks[:n_in].sum()
    rng = np.random.default_rng(seed)
    extreme, left = 0, permutations
    while left:
        batch = min(left, max(1, _CHUNK // both.size))
        drawn = rng.permuted(np.broadcast_to(ranks, (batch, both.size)), axis=1)
        extreme += int(np.count_nonzero(drawn[:, :n_in].sum(axis=1) >= observed - 1e-9))
        left -= batch
    return (1 + extreme) / (1 + permutations)


def bootstrap_mean(
    values: Floats, *, seed: int, alpha: float = 0.05, resamples: int = 2_000
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean.

    Raises:
        TooFewCanaries: without values.
    """
    if not values.size >= 1:
        msg = "n=0 values, expected at least 1."
        raise TooFewCanaries(msg)
    validate.open_unit(alpha=alpha)
    rng = np.random.default_rng(seed)
    means = rng.choice(values, size=(resamples, values.size)).mean(axis=1)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def roc(scores_in: Floats, scores_out: Floats) -> tuple[Floats, Floats]:
    """Return false and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([scores_in, scores_out]))[::-1]
    n_in, n_out = scores_in.size, scores_out.size
    above_in = n_in - np.searchsorted(np.sort(scores_in), thresholds, side="left")
    above_out = n_out - np.searchsorted(np.sort(scores_out), thresholds, side="left")
    fpr = np.concatenate([[0.0], above_out / n_out])
    tpr = np.concatenate([[0.0], above_in / n_in])
    return fpr, tpr


def roc_hull(scores_in: Floats, scores_out: Floats) -> tuple[Floats, Floats]:
    """Return the vertices of the upper convex hull of the ROC curve, from (0, 0) to (1, 1).

    Between two vertices lies an attacker who flips a coin between two thresholds. The hull is
    chosen after seeing the scores, so its rates are optimistic.

    Returns:
        False and true positive rates, both ascending.
    """
    fpr, tpr = roc(scores_in, scores_out)
    kept: list[int] = []
    for new in range(fpr.size):
        while len(kept) >= 2:
            before, last = kept[-2], kept[-1]
            rise = (tpr[last] - tpr[before]) * (fpr[new] - fpr[before])
            if rise > (tpr[new] - tpr[before]) * (fpr[last] - fpr[before]) + 1e-15:
                break
            kept.pop()
        kept.append(new)
    return fpr[kept], tpr[kept]


def hull_auc(scores_in: Floats, scores_out: Floats) -> float:
    """Return the area under the convex hull of the ROC curve.

    This is what ``jax_privacy`` prints as its AUROC. It is never below :func:`auc` and, without
    any signal, lies above one half; no interval or test of this module is about it.
    """
    fpr, tpr = roc_hull(scores_in, scores_out)
    return float(np.dot(np.diff(fpr), tpr[:-1] + tpr[1:]) / 2)


def binomial_p_value(
    successes: int, trials: int, *, probability: float, alternative: Alternative = "two-sided"
) -> float:
    """Return the exact p-value of "each trial succeeds with this probability".

    The two-sided value is twice the smaller tail, at most 1: the test that goes with
    :func:`clopper_pearson`. It is never below, and often above, the value of the test that adds up
    all outcomes less likely than the one seen.

    Raises:
        InvalidValue: unless ``0 <= successes <= trials``, ``trials >= 1`` and the probability
            lies in (0, 1).
    """
    validate.positive_integer(trials=trials)
    validate.open_unit(probability=probability)
    if not 0 <= successes <= trials:
        msg = f"successes={successes}, expected 0 to trials={trials}."
        raise InvalidValue(msg)
    up, down = 1.0, 1.0
    if successes > 0:
        up = float(special.betainc(successes, trials - successes + 1, probability))
    if successes < trials:
        down = float(special.betaincc(successes + 1, trials - successes, probability))
    if alternative == "two-sided":
        return min(1.0, 2 * min(up, down))
    return up if alternative == "greater" else down


def fisher_p_value(p_values: Sequence[float] | Floats) -> float:
    """Return Fisher's combination of independent p-values.

    ``-2 sum(ln p)`` is chi-squared with two degrees of freedom for each p-value under the null;
    for p-values that are discrete, as those from ranks are, the combination is conservative.

    Raises:
        InvalidValue: without p-values, or for one outside (0, 1].
    """
    found = _p_values(p_values)
    return float(special.gammaincc(found.size, -np.log(found).sum()))


def bonferroni(p_values: Sequence[float] | Floats) -> Floats:
    """Return p-values that may each be held against alpha, whatever hangs together with what.

    Returns:
        Shape ``(n,)``, each multiplied by their number, at most 1.

    Raises:
        InvalidValue: without p-values, or for one outside (0, 1].
    """
    found = _p_values(p_values)
    return np.minimum(1.0, found * found.size)


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Return Holm's step-down p-values: as safe as :func:`bonferroni` and never larger.

    Returns:
        Shape ``(n,)``, in the order given.

    Raises:
        InvalidValue: without p-values, or for one outside (0, 1].
    """
    found = _p_values(p_values)
    order = np.argsort(found, kind="stable")
    scaled = np.minimum(1.0, found[order] * (found.size - np.arange(found.size)))
    adjusted = np.empty_like(found)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted


def largest_auc(epsilon: float, delta: float) -> float:
    """Return the largest AUC that (epsilon, delta)-DP allows any attacker.

    The area above the trade-off function of Kairouz et al. (2015),
    ``1 - (1 - delta)^2 / (1 + e^epsilon)``.
    """
    validate.non_negative(epsilon=epsilon)
    validate.open_unit(delta=delta)
    return 1 - (1 - delta) ** 2 * float(special.expit(-epsilon))


def _p_values(values: Sequence[float] | Floats) -> Floats:
    """Return p-values as an array, checked."""
    found = np.asarray(values, dtype=np.float64)
    if not (found.ndim == 1 and found.size >= 1 and ((found > 0) & (found <= 1)).all()):
        msg = f"p_values of shape {found.shape}, expected at least one, each in (0, 1]."
        raise InvalidValue(msg)
    return found


def _placements(scores: Floats, others: Floats) -> Floats:
    """Return, for each score, the share of the others below it, ties counting half."""
    if not min(scores.size, others.size) >= 1:
        msg = f"n={scores.size} against {others.size} scores, expected at least 1 each."
        raise TooFewCanaries(msg)
    order = np.sort(others)
    below = np.searchsorted(order, scores, side="left")
    at_most = np.searchsorted(order, scores, side="right")
    return (below + at_most) / (2.0 * others.size)


def _mid_ranks(values: Floats) -> Floats:
    """Return ranks from 1, ties sharing their mean rank."""
    order = np.sort(values)
    below = np.searchsorted(order, values, side="left")
    at_most = np.searchsorted(order, values, side="right")
    return (below + at_most + 1) / 2.0


def _score_interval(value: float, n_in: int, n_out: int, z: float) -> tuple[float, float]:
    """Return the score interval of an AUC with the Hanley-McNeil variance."""
    spread = (n_in + n_out) / 2 - 1

    def outside(theta: float) -> bool:
        shape = 1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * shape / (n_in * n_out)
        return abs(theta - value) > z * math.sqrt(variance)

    return _boundary(value, 0.0, outside), _boundary(value, 1.0, outside)


def _boundary(inside: float, end: float, outside: Callable[[float], bool]) -> float:
    """Return where a region around ``inside`` ends on the way to ``end``, by bisection."""
    if inside == end:
        return end
    near, far = inside, end
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (near, middle) if outside(middle) else (middle, far)
    return near
