"""From the cosines of canary directions to epsilon: a pooled bound, and the published estimate.

The cosine between a fixed vector and a random direction of d dimensions has density proportional to
``(1 - t**2)**((d - 3) / 2)``, close to N(0, 1 / d). A canary that took part moves the mean and
hardly the spread. The pooled estimator therefore estimates the mean alone and takes the spread as
known. The estimate of Andrew et al. ("One-shot Empirical Privacy Estimation for Federated
Learning", 2024) also estimates the spread, which biases epsilon upwards with few canaries, and
their lower bound takes the best threshold without paying for the choice: both are information here
and decide nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from server.audit import gdp
from server.audit.protocol import Floats
from shared import validate
from shared.errors import TooFewCanaries

_NORMAL_FROM = 1000
_LARGEST_EPSILON = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """What k cosines say about a Gaussian mechanism.

    Attributes:
        mu: estimated distance between "took part" and "did not", in standard deviations; may be
            negative.
        standard_error: of ``mu``.
        epsilon: estimate at the given delta.
        lower: one-sided lower bound on epsilon, parametric.
    """

    mu: float
    standard_error: float
    epsilon: float
    lower: float


def pooled(
    cosines: Floats,
    *,
    dimension: int,
    delta: float,
    alpha: float = 0.05,
    share: float = 1.0,
    sampling_variance: float = 0.0,
) -> Pooled:
    """Estimate and bound epsilon from the mean of cosines.

    Guarantee:
        If the mechanism is mu-GDP for a canary and its noise is isotropic, ``lower`` is above its
        epsilon with probability at most ``alpha``. What other clients contribute makes the release
        longer and the cosines smaller, so it only lowers the bound.

    Args:
        cosines: one per canary, shape ``(k,)``.
        dimension: number of coordinates that the cosines were taken over.
        delta: at which epsilon is stated.
        alpha: chance that the lower bound is above the truth.
        share: part of all coordinates that the cosines were taken over.
        sampling_variance: what the canaries' own coins add to the variance of ``mu``, for k = 1.

    Raises:
        TooFewCanaries: without cosines.
    """
    validate.open_unit(alpha=alpha)
    if not cosines.size >= 1:
        msg = "cosines=0, expected at least one canary."
        raise TooFewCanaries(msg)
    mu = math.sqrt(dimension / share) * float(cosines.mean())
    error = math.sqrt((1.0 / share + sampling_variance) / cosines.size)
    lower = mu + float(special.ndtri(alpha)) * error
    return Pooled(
        mu=mu,
        standard_error=error,
        epsilon=gdp.epsilon(max(0.0, mu), delta),
        lower=gdp.epsilon(max(0.0, lower), delta),
    )


def null_tail(cosine: float, dimension: int) -> float:
    """Return the exact probability that a random direction has at least this cosine.

    ``(1 + t) / 2`` is Beta((d - 1) / 2, (d - 1) / 2) distributed; d >= 2.
    """
    half = (dimension - 1) / 2
    return float(special.betainc(half, half, min(1.0, max(0.0, (1 - cosine) / 2))))


def andrew_epsilon(cosines: Floats, *, dimension: int, delta: float) -> float | None:
    """Return the published estimate of epsilon; information only.

    Epsilon between the null and a normal distribution with the mean and the spread of the cosines.
    Below 1000 dimensions the null is exact and thresholds are searched, above it is normal.

    Returns:
        None with fewer than two canaries, without spread, or if the canaries lean away.
    """
    if not cosines.size >= 2:
        return None
    mean, spread = float(cosines.mean()), float(cosines.std())
    if not (spread > 0 and mean > 0):
        return None
    return andrew_from_moments(mean, spread, dimension=dimension, delta=delta)


def andrew_from_moments(mean: float, spread: float, *, dimension: int, delta: float) -> float:
    """Return epsilon between the null of cosines and ``N(mean, spread**2)`` at delta."""
    validate.positive(mean=mean, spread=spread)
    validate.open_unit(delta=delta)
    if dimension >= _NORMAL_FROM:
        scale = math.sqrt(dimension)
        return two_normals(mean * scale, spread * scale, delta)
    low = 2 * float(special.betaincinv((dimension - 1) / 2, (dimension - 1) / 2, delta)) - 1
    high = float(stats.norm.ppf(1 - delta, mean, spread))
    thresholds = np.linspace(low, high, 10_000)
    missed = stats.norm.cdf(thresholds, mean, spread)
    return _best_threshold(thresholds, missed, dimension, delta)


def andrew_lower_bound(cosines: Floats, *, dimension: int, delta: float, alpha: float) -> float:
    """Return the published lower bound; information only, because it is none at ``1 - alpha``.

    Jeffreys intervals on the share of canaries below a threshold, the null exact below 1000
    dimensions and normal above, and the best threshold taken without correction.
    """
    ordered = np.sort(cosines)
    below = np.arange(ordered.size)
    missed = stats.beta.ppf(1 - alpha, below + 0.5, ordered.size - below + 0.5)
    return _best_threshold(ordered, missed, dimension, delta)


def two_normals(mean: float, spread: float, delta: float) -> float:
    """Return epsilon at delta between N(0, 1) and ``N(mean, spread**2)``, the worse direction."""

    def excess(epsilon: float) -> float:
        first = _hockey_stick(epsilon, (0.0, 1.0), (mean, spread))
        return max(first, _hockey_stick(epsilon, (mean, spread), (0.0, 1.0))) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0 and high < _LARGEST_EPSILON:
        high *= 4
    if excess(high) > 0:
        return _LARGEST_EPSILON
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-10))


def _hockey_stick(epsilon: float, over: tuple[float, float], under: tuple[float, float]) -> float:
    """Return ``P(S) - e^epsilon Q(S)`` where S is all points at which P is the larger by that."""
    (m1, s1), (m2, s2) = over, under
    # log P / Q - epsilon = a y^2 + b y + c
    a = 0.5 * (s2**-2 - s1**-2)
    b = m1 / s1**2 - m2 / s2**2
    c = 0.5 * ((m2 / s2) ** 2 - (m1 / s1) ** 2) + math.log(s2 / s1) - epsilon
    if abs(a) * max(1.0, s1, s2) ** 2 < 1e-9:
        if b == 0:
            return max(0.0, 1 - math.exp(min(epsilon, 0.0))) if c > 0 else 0.0
        edge = -c / b
        tails = [_log_tail(edge, m, s, above=b > 0) for m, s in (over, under)]
        return max(0.0, math.exp(tails[0]) - math.exp(min(epsilon + tails[1], 0.0)))
    root = b * b - 4 * a * c
    if root <= 0:
        return 0.0 if a < 0 else max(0.0, 1 - math.exp(min(epsilon, 0.0)))
    edges = sorted(((-b - math.sqrt(root)) / (2 * a), (-b + math.sqrt(root)) / (2 * a)))
    logs = [_log_mass(edges[0], edges[1], m, s, inside=a < 0) for m, s in (over, under)]
    return max(0.0, math.exp(logs[0]) - math.exp(min(epsilon + logs[1], 0.0)))


def _log_mass(low: float, high: float, mean: float, spread: float, *, inside: bool) -> float:
    """Return the logarithm of the mass of a normal distribution between two points, or outside."""
    if not inside:
        left, right = (
            _log_tail(edge, mean, spread, above=up) for edge, up in ((low, False), (high, True))
        )
        return min(0.0, float(np.logaddexp(left, right)))
    above = low > mean
    more, less = (low, high) if above else (high, low)
    big = _log_tail(more, mean, spread, above=above)
    gap = _log_tail(less, mean, spread, above=above) - big
    return big + math.log1p(-math.exp(gap)) if gap < 0 else -math.inf


def _log_tail(edge: float, mean: float, spread: float, *, above: bool) -> float:
    """Return the logarithm of the mass of a normal distribution on one side of a point."""
    distance = (edge - mean) / spread
    return float(special.log_ndtr(-distance if above else distance))


def _best_threshold(thresholds: Floats, missed: Floats, dimension: int, delta: float) -> float:
    """Return the best of ``ln((1 - delta - FNR) / FPR)`` and its mirror, at least 0."""
    if dimension >= _NORMAL_FROM:
        accused = special.ndtr(-thresholds * math.sqrt(dimension))
    else:
        half = (dimension - 1) / 2
        accused = special.betainc(half, half, np.clip((1 - thresholds) / 2, 0.0, 1.0))
    best = 0.0
    for right, wrong in ((1 - delta - missed, accused), (1 - delta - accused, missed)):
        useful = (right > 0) & (wrong > 0)
        if useful.any():
            best = max(best, float(np.log(right[useful] / wrong[useful]).max()))
    return best
