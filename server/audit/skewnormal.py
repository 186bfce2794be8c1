"""A skew-normal curve through reference losses, to extrapolate a rank beyond the references.

Carlini et al., "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural
Networks" (2019), section 4.3: losses of random secrets look skew-normal, so the share of the space
that a model finds likelier than a canary can be read off a fitted curve where no reference was
drawn. What comes out is an estimate that leans on the shape of a tail nobody looked at; no verdict
uses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from server.audit.protocol import Floats
from shared.errors import TooFewCanaries

LARGEST_SKEWNESS = 0.99
"""A skew-normal curve reaches a skewness of 0.9953; sample skewness beyond this is cut to it."""

MIN_LOSSES = 16
"""Fewest losses that a curve of three parameters is put through."""

_NODES, _WEIGHTS = np.polynomial.laguerre.laggauss(48)
_TAIL = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewNormal:
    """A skew-normal distribution, ``2 phi(z) Phi(shape z) / scale`` with ``z = (x - loc) / scale``.

    Args:
        loc: location, in the unit of the losses; not the mean.
        scale: scale, above zero; not the standard deviation.
        shape: skewness parameter; 0 is the normal distribution.
    """

    loc: float
    scale: float
    shape: float

    def log_cdf(self, x: float) -> float:
        """Return the natural logarithm of the share below ``x``, accurate far into the left tail.

        In the body it is ``Phi(z) - 2 T(z, shape)`` with Owen's T. In the left tail that difference
        cancels, so there the density is integrated instead: it is log-concave, hence bounded by
        its tangent, and Gauss-Laguerre quadrature along that tangent converges fast.
        """
        z = (x - self.loc) / self.scale
        body = float(special.ndtr(z) - 2 * special.owens_t(z, self.shape))
        if body > _TAIL:
            return math.log(min(1.0, body))
        slope = -z + self.shape * math.exp(_log_phi(self.shape * z) - _log_ndtr(self.shape * z))
        steps = _NODES / slope
        drop = _log_density(z - steps, self.shape) - _log_density(np.array([z]), self.shape)[0]
        integral = float(np.sum(_WEIGHTS * np.exp(drop + _NODES))) / slope
        return float(_log_density(np.array([z]), self.shape)[0]) + math.log(integral)


def fit(losses: Floats) -> SkewNormal | None:
    """Fit a skew-normal curve by the method of moments.

    Moments have a closed form, so that whoever repeats the fit gets the same figures; a likelihood
    fit has neither, and runs off to an infinite shape on small samples.

    Args:
        losses: shape ``(n,)``.

    Returns:
        The curve; None where all losses are the same.

    Raises:
        TooFewCanaries: for fewer than :data:`MIN_LOSSES` losses.
    """
    if not losses.size >= MIN_LOSSES:
        msg = f"losses={losses.size}, expected at least {MIN_LOSSES} to fit a curve."
        raise TooFewCanaries(msg)
    mean, deviation = float(losses.mean()), float(losses.std())
    if not deviation > 1e-12 * max(1.0, abs(mean)):
        return None
    skewness = float((((losses - mean) / deviation) ** 3).mean())
    skewness = max(-LARGEST_SKEWNESS, min(LARGEST_SKEWNESS, skewness))
    power = abs(skewness) ** (2 / 3)
    squared = (math.pi / 2) * power / (power + ((4 - math.pi) / 2) ** (2 / 3))
    delta = math.copysign(math.sqrt(squared), skewness)
    scale = deviation / math.sqrt(1 - 2 * squared / math.pi)
    loc = mean - scale * delta * math.sqrt(2 / math.pi)
    return SkewNormal(loc=loc, scale=scale, shape=delta / math.sqrt(1 - squared))


def _log_phi(z: float) -> float:
    """Return the logarithm of the standard normal density."""
    return -z * z / 2 - math.log(2 * math.pi) / 2


def _log_ndtr(z: float) -> float:
    """Return the logarithm of the standard normal distribution function."""
    return float(special.log_ndtr(z))


def _log_density(z: Floats, shape: float) -> Floats:
    """Return the logarithm of the density for location 0 and scale 1."""
    flat = math.log(2) - math.log(2 * math.pi) / 2
    return np.asarray(flat - z * z / 2 + special.log_ndtr(shape * z), dtype=np.float64)
