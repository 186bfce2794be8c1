"""Privacy loss distributions on a grid: of one release, of many, and the epsilon they imply.

The loss of an outcome o drawn from P is ``log(P(o) / Q(o))``; its distribution decides
``delta(epsilon) = E[(1 - exp(epsilon - loss))+]``, and that of several releases on the same data is
a convolution. The pairs (P, Q) of Poisson-subsampled Gaussian noise, where their tails are cut (at
a mass of ``exp(-50)``) and their distribution functions are ``dp-accounting``'s. What it computes
in loops is computed in arrays here, by the same formulas:

* "Connect the dots" (Doroshenko et al. 2022, arXiv:2207.04380) puts a loss on a grid so that
  ``delta`` at the points of the grid is exact, and between them and beyond its end too large.
* Convolution by fast Fourier transform on a window; the mass outside it, at most ``1e-15`` by
  Chernoff's bound, counts as an infinite loss.

Guarantee: every step makes ``delta(epsilon)`` larger or leaves it, but for the rounding of doubles,
as in ``dp-accounting``, whose deltas these are within 1e-12 and a billionth of them: where delta is
1e-6 or more, epsilon has the same eight digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidValue
from shared.privacy.events import NeighboringRelation

Grid = npt.NDArray[np.float64]

TAIL_MASS = 1e-15
# Orders of Chernoff's bound, over the width of the distribution.
_ORDERS = np.arange(1, 21)
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Losses:
    """How the privacy loss in one direction (P against Q) is distributed.

    Attributes:
        interval: distance of the points of the grid.
        lowest: the smallest loss, in intervals.
        masses: float64 ``(n,)``, probabilities of the losses from ``lowest`` on, read-only; a
            convolution may leave some of them below zero by rounding.
        infinite: probability of an infinite loss.
    """

    interval: float
    lowest: int
    masses: Grid = field(repr=False)
    infinite: float

    def __post_init__(self) -> None:
        self.masses.setflags(write=False)

    def times(self, count: int) -> Losses:
        """Return the loss of ``count >= 1`` such releases.

        The transform is raised to a power, so the cost hardly depends on the count.
        """
        if count == 1:
            return self
        from scipy import fft

        first, last = _window(self.masses, count)
        size = max(last - first + 1, self.masses.size)
        size = fft.next_fast_len(size, real=True)
        # What the transform wraps around is what is outside the window, which counts as infinite.
        whole = fft.irfft(fft.rfft(self.masses, size) ** count, size)
        masses = np.roll(whole, -first)[: last - first + 1]
        some = -math.expm1(count * math.log1p(-self.infinite))
        return Losses(
            interval=self.interval,
            lowest=self.lowest * count + first,
            masses=masses,
            infinite=TAIL_MASS + some,
        )

    def plus(self, other: Losses) -> Losses:
        """Return the loss of both, on the same grid.

        Raises:
            InvalidValue: if the grids differ.
        """
        if self.interval != other.interval:
            msg = f"losses on grids of {self.interval!r} and {other.interval!r}, expected one grid."
            raise InvalidValue(msg)
        from scipy import signal

        both = signal.fftconvolve(self.masses, other.masses)
        # Half of the tail is cut at either end: below it only moves up, above it is infinite.
        cut = TAIL_MASS / 2.0
        first = int(np.argmax(np.cumsum(both) > cut))
        last = both.size - int(np.argmax(np.cumsum(both[::-1]) > cut))
        masses = both[first:last].copy()
        masses[0] += both[:first].sum()
        infinite = self.infinite + other.infinite - self.infinite * other.infinite
        return Losses(
            interval=self.interval,
            lowest=self.lowest + other.lowest + first,
            masses=masses,
            infinite=infinite + float(both[last:].sum()),
        )

    def delta(self, epsilon: float) -> float:
        """Return delta at an epsilon."""
        losses = self._losses()
        above = losses > epsilon
        return self.infinite + float(-np.expm1(epsilon - losses[above]) @ self.masses[above])

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon >= 0 whose delta is at most ``delta``; infinite if none is.

        With losses falling, ``upper`` and ``lower`` are the masses of P and Q that were passed, and
        between two losses ``delta(epsilon) = upper - exp(epsilon) * lower``.
        """
        if self.infinite > delta:
            return math.inf
        losses = self._losses()[::-1]
        count = int(np.count_nonzero(losses > 0.0))
        masses = self.masses[::-1][:count]
        losses, following = losses[:count], losses[1 : count + 1]
        if following.size < count:
            following = np.append(following, 0.0)
        upper = self.infinite + np.cumsum(masses)
        lower = np.cumsum(masses * np.exp(-losses))
        # Losses above 745 weigh nothing under Q as doubles: there epsilon is the loss itself.
        beyond = (lower == 0.0) & (upper >= delta)
        inside = (lower > 0.0) & (upper > delta)
        found = np.where(beyond, losses, -np.inf)
        found[inside] = np.log(upper[inside] - delta) - np.log(lower[inside])
        reached = beyond | (inside & (found >= following))
        if not reached.any():
            return 0.0
        return max(0.0, float(found[int(np.argmax(reached))]))

    def _losses(self) -> Grid:
        """Return the points of the grid, ascending."""
        points = np.arange(self.lowest, self.lowest + self.masses.size)
        return np.asarray(points * self.interval, dtype=np.float64)


@lru_cache(maxsize=16)
def one_release(
    q: float, z: float, relation: NeighboringRelation, interval: float
) -> tuple[Losses, ...]:
    """Return the loss of one Poisson-subsampled Gaussian release.

    Kept for the last few kinds, because a run asks for the same one round after round.

    Args:
        q: sampling probability in ``(0, 1]``.
        z: noise multiplier, > 0.
        relation: the neighbouring relation.
        interval: of the grid.

    Returns:
        One distribution, or two, of a unit that leaves and of one that joins, where they differ:
        under add-or-remove-one with sampling.
    """
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType

    if relation is NeighboringRelation.REPLACE_ONE:
        return (_direction(q, z, AdjacencyType.REPLACE, interval),)
    if q == 1.0:
        return (_direction(q, z, AdjacencyType.REMOVE, interval),)
    ways = (AdjacencyType.REMOVE, AdjacencyType.ADD)
    return tuple(_direction(q, z, way, interval) for way in ways)


def releases(
    q: float, z: float, count: int, relation: NeighboringRelation, interval: float
) -> tuple[Losses, ...]:
    """Return the loss of ``count`` equal releases; exact for q = 1, where Gaussians add up."""
    if q == 1.0:
        return one_release(q, z / math.sqrt(count), relation, interval)
    return tuple(way.times(count) for way in one_release(q, z, relation, interval))


def together(one: tuple[Losses, ...], other: tuple[Losses, ...]) -> tuple[Losses, ...]:
    """Return the losses of both; a single distribution stands for both directions."""
    ways = max(len(one), len(other))
    first, second = one * (ways // len(one)), other * (ways // len(other))
    return tuple(a.plus(b) for a, b in zip(first, second, strict=True))


def connect_the_dots(deltas: Grid, *, lowest: int, interval: float) -> Losses:
    """Return the pessimistic distribution whose delta is exact at the points of the grid.

    Args:
        deltas: float64 ``(n,)``, n >= 1, delta at the losses ``lowest``, ``lowest + 1``, ... in
            intervals; not increasing, within rounding, and in ``[0, 1]``.
        lowest: the first loss, in intervals.
        interval: > 0.

    Raises:
        InvalidValue: for values that are not such deltas.
    """
    within = bool(np.all((deltas >= 0.0) & (deltas <= 1.0)))
    if not (within and bool(np.all(np.diff(deltas) <= _ROUNDING))):
        msg = "deltas on a grid of privacy losses are not in [0, 1], or increase."
        raise InvalidValue(msg, hint="This is a defect of the accounting; please report it.")
    falls = np.diff(np.minimum.accumulate(deltas))
    masses = np.full(deltas.size, 1.0 - deltas[0])
    if falls.size:
        step = math.expm1(interval)
        masses[0] += falls[0] / step
        masses[1:-1] = (falls[1:] - falls[:-1] * math.exp(interval)) / step
        masses[-1] = falls[-1] / math.expm1(-interval)
    return Losses(
        interval=interval,
        lowest=lowest,
        masses=np.maximum(0.0, masses),
        infinite=float(deltas[-1]),
    )


def _direction(q: float, z: float, way: Any, interval: float) -> Losses:  # noqa: ANN401
    """Return the loss in one direction; ``way`` is an ``AdjacencyType`` of dp-accounting."""
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

    pair = GaussianPrivacyLoss(z, sampling_prob=q, adjacency_type=way)
    bounds = pair.connect_dots_bounds()
    lowest = math.floor(bounds.epsilon_lower / interval)
    highest = math.ceil(bounds.epsilon_upper / interval)
    epsilons = np.arange(lowest, highest + 1) * interval
    cuts = _CUTS[way.name](epsilons, q, z)
    outcomes = np.exp(epsilons + pair.mu_lower_log_cdf(cuts))
    deltas = np.clip(pair.mu_upper_cdf(cuts) - outcomes, 0.0, 1.0)
    return connect_the_dots(deltas, lowest=lowest, interval=interval)


def _cut_of_leaving(epsilons: Grid, q: float, z: float) -> Grid:
    """Return up to where ``(1-q) N(0) + q N(-1)`` has a loss of epsilon against ``N(0)``."""
    return -0.5 - _unsampled(epsilons, q) * z**2


def _cut_of_joining(epsilons: Grid, q: float, z: float) -> Grid:
    """Return up to where ``N(0)`` has a loss of epsilon against ``(1-q) N(0) + q N(1)``."""
    return 0.5 + _unsampled(-epsilons, q) * z**2


def _cut_of_replacing(epsilons: Grid, q: float, z: float) -> Grid:
    """Return up to where ``(1-q) N(0) + q N(-1)`` has it against ``(1-q) N(0) + q N(1)``.

    With ``w = x / z**2`` the loss is epsilon where ``sinh(w + epsilon / 2)`` is
    ``-sinh(epsilon / 2) exp(1 / (2 z**2)) (1 - q) / q``. In logarithms, because the factors are
    huge.
    """
    if q == 1.0:
        return -0.5 * epsilons * z**2
    half = np.abs(epsilons) / 2.0
    with np.errstate(divide="ignore"):
        log_sinh = half + np.log1p(-np.exp(-2.0 * half)) - math.log(2.0)
    log_factor = 0.5 / z**2 + math.log1p(-q) - math.log(q) + log_sinh
    asinh = np.logaddexp(0.5 * np.logaddexp(0.0, 2.0 * log_factor), log_factor)
    return z**2 * (-np.sign(epsilons) * asinh - epsilons / 2.0)


_CUTS = {"REMOVE": _cut_of_leaving, "ADD": _cut_of_joining, "REPLACE": _cut_of_replacing}


def _unsampled(epsilons: Grid, q: float) -> Grid:
    """Return ``log(1 + (exp(epsilon) - 1) / q)``: the loss before sampling that sampling makes so.

    Minus infinity at and below ``log(1 - q)``, the smallest loss that sampling leaves.
    """
    if q == 1.0:
        return epsilons
    with np.errstate(divide="ignore", over="ignore"):
        rest = np.minimum((1.0 - q) * np.exp(-epsilons), 1.0)
        return np.asarray(epsilons - math.log(q) + np.log1p(-rest), dtype=np.float64)


def _window(masses: Grid, count: int) -> tuple[int, int]:
    """Bound where ``count`` draws fall, but for ``TAIL_MASS``: first and last sum of indices.

    Chernoff's bound at orders of ``1 / n`` to ``20 / n`` either way; half of the mass at each end.
    """
    width = masses.size
    step = np.exp(np.arange(width) / width)
    up, down = masses.copy(), masses.copy()
    log_up, log_down = np.empty(_ORDERS.size), np.empty(_ORDERS.size)
    for row in range(_ORDERS.size):
        up *= step
        down /= step
        log_up[row], log_down[row] = math.log(up.sum()), math.log(down.sum())
    room = math.log(2.0 / TAIL_MASS)
    last = ((count * log_up + room) * width / _ORDERS).min()
    first = -((count * log_down + room) * width / _ORDERS).min()
    return max(0, math.floor(first)), min((width - 1) * count, math.ceil(last))
