"""A second accountant for Gaussian releases, for checking the first one.

It shares no code with the accountant that a run is planned and charged with. The distribution of
the privacy loss of each kind of release is put on a grid, each point in its nearest cell; its
discrete Fourier transform is raised to the number of releases; what rounding did to the mean is
put right at the end. That is the method of Gopi, Lee and Wutschitz, "Numerical Composition of
Differential Privacy" (2021, arXiv:2106.02848), of which Koskela, Jalko and Honkela, "Computing
Tight Differential Privacy Guarantees Using FFT" (2020, arXiv:1906.03049), is the forerunner.

The result is an estimate, neither an upper nor a lower bound: it is there to be close to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from server.audit.protocol import Floats
from shared.errors import InvalidValue

SMALLEST_DELTA = 1e-10
"""Below this delta the rounding of the transform would show."""
_CELLS = 2**18
_POINTS = 40_001
# Standard deviations of one release that are looked at, and mass that may be beyond the window.
_REACH = 14.0
_BEYOND = 1e-4
_TILTS = 2.0 ** np.arange(-6.0, 7.0)

Kind = tuple[float, float, int]
Cells = NDArray[np.int64]


def fourier_epsilon(kinds: Sequence[Kind], *, delta: float, replace_one: bool = False) -> float:
    """Estimate epsilon of Poisson-subsampled Gaussian releases.

    Args:
        kinds: ``(sampling probability, noise multiplier, number of releases)`` of each kind.
        delta: at least :data:`SMALLEST_DELTA` and below 1.
        replace_one: whether neighbours replace a unit instead of adding or removing one.

    Returns:
        Epsilon, at least 0; 0 for no releases.

    Raises:
        InvalidValue: for a delta that is out of reach.
    """
    if not SMALLEST_DELTA <= delta < 1.0:
        msg = f"delta={delta!r}, expected at least {SMALLEST_DELTA} and below 1."
        raise InvalidValue(msg)
    if not kinds:
        return 0.0
    # Removing and adding differ; replacing is its own mirror image.
    ways = (_Replace,) if replace_one else (_Remove, _Add)
    return max(_epsilon([way(q, z) for q, z, _ in kinds], kinds, delta) for way in ways)


class _Loss:
    """The privacy loss of one release: of x under P, the logarithm of P(x) / Q(x).

    P and Q are mixtures of normal laws; x runs over a fine line, and the loss never falls along it.
    """

    def __init__(self, q: float, z: float, *, top: float, bottom: float) -> None:
        self._q, self._z, self._shift = q, z, top
        reach = _REACH * z + 1.0
        self.x = np.linspace(-reach, reach, _POINTS)
        self.p = self._log(top)
        # Rounding may let a flat stretch fall by a last bit.
        self.value = np.maximum.accumulate(self.p - self._log(bottom))

    def _log(self, shift: float) -> Floats:
        """Return the logarithm of the density of a mixture, without what P and Q share."""
        q, z, x = self._q, self._z, self.x
        away = -np.inf if q == 1.0 else math.log1p(-q)
        moved = math.log(q) + (shift * x - shift**2 / 2.0) / z**2
        return np.asarray(np.logaddexp(away, moved) if shift else np.zeros_like(x))

    def weights(self) -> Floats:
        """Return the probability of each point of the line, for means over it."""
        density = np.exp(self.p - self.x**2 / (2.0 * self._z**2))
        return np.asarray(density / density.sum())

    def below(self, edges: Floats) -> Floats:
        """Return the probability under P of losses below some edges, ascending."""
        x = np.interp(edges, self.value, self.x, left=-np.inf, right=np.inf)
        away = special.ndtr(x / self._z)
        moved = special.ndtr((x - self._shift) / self._z)
        return np.asarray((1.0 - self._q) * away + self._q * moved if self._shift else away)


class _Remove(_Loss):
    """The unit's data are there or not, seen by who has them: P moves, Q does not."""

    def __init__(self, q: float, z: float) -> None:
        super().__init__(q, z, top=1.0, bottom=0.0)


class _Add(_Loss):
    """The same seen from the other side, mirrored so that the loss rises along the line."""

    def __init__(self, q: float, z: float) -> None:
        super().__init__(q, z, top=0.0, bottom=-1.0)


class _Replace(_Loss):
    """The unit's data are one thing or its opposite."""

    def __init__(self, q: float, z: float) -> None:
        super().__init__(q, z, top=1.0, bottom=-1.0)


def _epsilon(losses: Sequence[_Loss], kinds: Sequence[Kind], delta: float) -> float:
    """Compose losses and read epsilon off their distribution."""
    counts = [count for _, _, count in kinds]
    low, high = _window(losses, counts, delta * _BEYOND)
    # Wide enough also for what one release can do at worst.
    widest = max(float(loss.value[-1] - loss.value[0]) for loss in losses)
    cell = max(high - low, widest / 4.0) / _CELLS
    spectrum = np.ones(_CELLS // 2 + 1, dtype=np.complex128)
    drift = 0.0
    for loss, count in zip(losses, counts, strict=True):
        cells, mass = _on_grid(loss, cell)
        drift += count * float(loss.weights() @ loss.value - mass @ (cells * cell))
        wrapped = np.bincount(cells % _CELLS, weights=mass, minlength=_CELLS)
        spectrum *= np.fft.rfft(wrapped) ** count
    first = math.floor(low / cell)
    mass = np.roll(np.fft.irfft(spectrum, _CELLS), -(first % _CELLS))
    values = np.asarray((first + np.arange(_CELLS)) * cell + drift, dtype=np.float64)
    return _solve(values, np.maximum(mass, 0.0), delta)


def _on_grid(loss: _Loss, cell: float) -> tuple[Cells, Floats]:
    """Return the numbers of the cells that one loss reaches, and the mass in each."""
    first, last = round(float(loss.value[0]) / cell), round(float(loss.value[-1]) / cell)
    cells = np.arange(first, last + 1, dtype=np.int64)
    inner = loss.below(np.asarray((cells[:-1] + 0.5) * cell, dtype=np.float64))
    return cells, np.diff(inner, prepend=0.0, append=1.0)


def _window(losses: Sequence[_Loss], counts: Sequence[int], beyond: float) -> tuple[float, float]:
    """Return an interval that the sum leaves with at most twice some probability (Chernoff)."""
    weights = [loss.weights() for loss in losses]
    ends = []
    for sign in (-1.0, 1.0):
        moments = np.zeros_like(_TILTS)
        for loss, weight, count in zip(losses, weights, counts, strict=True):
            tilted = sign * _TILTS[:, None] * loss.value[None, :]
            moments += count * special.logsumexp(tilted, b=weight[None, :], axis=1)
        ends.append(sign * float(np.min((moments - math.log(beyond)) / _TILTS)))
    return ends[0], ends[1]


def _solve(values: Floats, mass: Floats, delta: float) -> float:
    """Return the smallest epsilon at which a loss has at most so much delta."""

    def excess(epsilon: float) -> float:
        above = values > epsilon
        return float(mass[above] @ -np.expm1(epsilon - values[above])) - delta

    if excess(0.0) <= 0.0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, float(values[-1]), xtol=1e-9))
