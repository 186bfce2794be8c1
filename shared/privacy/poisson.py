"""Exact Poisson variates from a cryptographic key stream, for means from almost 0 to ``2**52``.

Below a mean of 10 the distribution function is inverted: one 64-bit word is compared with
``2**64 * P(K <= k)``, worked out with 60 decimal digits, so every probability is right to 2**-64.

From 10 on, transformed rejection with a squeeze (PTRS, Hormann 1993). Its test compares a uniform
number with the probability of the candidate. The textbook form ``k log(mean) - mean - lgamma(k+1)``
subtracts numbers of size ``mean * log(mean)`` and is off by 1 at a mean of 1e15; here the logarithm
of the probability comes from Loader's saddle-point expansion (2000), whose terms are all of the
size of the result. Candidates are kept as distances from the integer part of the mean, so nothing
is rounded at large means either.

Hormann's constants were fitted. Below a mean of 10,000 his hat falls short of the probabilities by
up to 0.56 % and his squeeze lets through up to 0.32 % too much, so the hat is raised by 1 % and the
squeeze lowered by 0.005; a test checks both conditions. What remains against the exact law is the
granularity of the uniforms (2**-53 of the width of the hat in position, 2**-65 in height) and a
relative error of the probabilities below 1e-12.

References:
    W. Hormann 1993, "The transformed rejection method for generating Poisson random variables",
    Insurance: Mathematics and Economics 12. C. Loader 2000, "Fast and accurate computation of
    binomial probabilities".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidValue

Floats: TypeAlias = npt.NDArray[np.float64]
Words: TypeAlias = Callable[[int], npt.NDArray[np.uint64]]

LARGEST_MEAN = 2.0**52
INVERSION_BELOW = 10.0

_BLOCK = 1 << 15
_DIGITS = 60
_FIRST_STIRLING = 16
_RAISED = 1.01
_LOWERED = 0.005
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_LOG_FACTORIAL = np.array([math.lgamma(k + 1.0) for k in range(_FIRST_STIRLING)])


def poisson(words: Words, mean: float, n: int) -> npt.NDArray[np.int64]:
    """Draw ``n`` independent Poisson numbers.

    Args:
        words: gives that many fresh uniform 64-bit words.
        mean: in ``(0, 2**52]``.
        n: how many, at least 0.

    Returns:
        Shape ``(n,)``, int64, all at least 0.

    Raises:
        InvalidValue: if the mean is out of range.
    """
    real = isinstance(mean, int | float) and not isinstance(mean, bool)
    if not (real and 0 < mean <= LARGEST_MEAN):
        msg = f"mean={mean!r}, expected a number in (0, 2**52]."
        raise InvalidValue(msg)
    out = np.empty(n, dtype=np.int64)
    filled = 0
    draw = _by_inversion if mean < INVERSION_BELOW else _by_rejection
    while filled < n:
        # PTRS rejects 11 to 17 %; surplus numbers are dropped by position alone, without bias.
        size = min(_BLOCK, int(1.2 * (n - filled)) + 16)
        numbers = draw(words, float(mean), size)[: n - filled]
        out[filled : filled + numbers.size] = numbers
        filled += numbers.size
    return out


def log_probability(mean: float, distance: Floats) -> Floats:
    """Return the logarithm of the Poisson probability of ``floor(mean) + distance``.

    Args:
        mean: at least 10.
        distance: integers as float64, none below ``-floor(mean)``.

    Returns:
        Same shape, float64; the error is below 1e-12 as far as 12 deviations from the mean.
    """
    whole = math.floor(mean)
    k = whole + distance
    away = distance - (mean - whole)
    large = np.maximum(k, float(_FIRST_STIRLING))
    result = -_stirling_error(large) - _deviance(large, away, mean)
    result -= 0.5 * np.log(large) + _HALF_LOG_TWO_PI
    small = k < _FIRST_STIRLING
    if small.any():
        table = _LOG_FACTORIAL[k[small].astype(np.int64)]
        result[small] = k[small] * math.log(mean) - mean - table
    return result


def _stirling_error(k: Floats) -> Floats:
    """Return ``log k! - log(sqrt(2 pi k) (k/e)**k)`` for ``k >= 16``, to 1e-16."""
    inverse = 1.0 / k
    square = inverse * inverse
    tail = square * (1 / 1680 - square * (1 / 1188 - square * (691 / 360360)))
    return inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - tail)))


def _deviance(k: Floats, away: Floats, mean: float) -> Floats:
    """Return ``k log(k / mean) + mean - k`` without cancellation; ``away`` is ``k - mean``."""
    v = away / (k + mean)
    square = v * v
    series = np.full_like(v, 1 / 17)
    for j in range(15, 1, -2):
        series *= square
        series += 1 / j
    result = away * v + 2.0 * k * v * square * series
    # Below |v| = 0.1 the first omitted term is 1e-17 of the first; beyond, nothing cancels.
    far = np.abs(v) >= 0.1
    if far.any():
        result[far] = k[far] * np.log(k[far] / mean) - away[far]
    return result


def hat(mean: float) -> tuple[float, float, float, float]:
    """Return ``a``, ``b``, ``1 / alpha`` and the height of the squeeze of PTRS.

    A candidate is ``floor((2 a / r + b) u + mean + 0.43)`` with ``u`` uniform on (-1/2, 1/2) and
    ``r = 1/2 - |u|``. It is kept if a uniform number is at most its probability times
    ``(a / r**2 + b) * alpha``; that product is at most 1, at least the squeeze where ``r >= 0.07``,
    and at most ``r`` where ``r < 0.013``.
    """
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = _RAISED * (1.1239 + 1.1328 / (b - 3.4))
    return a, b, inverse_alpha, (0.9277 - 3.6224 / (b - 2.0) - _LOWERED) / _RAISED


def _by_rejection(words: Words, mean: float, size: int) -> Floats:
    """Make ``size`` proposals by PTRS and return the accepted ones, in order."""
    a, b, inverse_alpha, surely = hat(mean)
    whole = math.floor(mean)

    drawn = words(2 * size)
    # u is symmetric in (-1/2, 1/2) and never an end; v is in (0, 1], with 64 bits near 0.
    u = (drawn[:size] >> np.uint64(11)).astype(np.float64)
    u -= 2.0**52
    u += 0.5
    u *= 2.0**-53
    v = drawn[size:].astype(np.float64)
    v += 0.5
    v *= 2.0**-64

    room = 0.5 - np.abs(u)
    distance = np.floor((2.0 * a / room + b) * u + (mean - whole + 0.43))
    accepted = (room >= 0.07) & (v <= surely)
    open_ = np.flatnonzero(~accepted & (distance >= -whole) & ((room >= 0.013) | (v <= room)))
    height = np.log(v[open_] * inverse_alpha / (a / np.square(room[open_]) + b))
    accepted[open_] = height <= log_probability(mean, distance[open_])
    return distance[accepted] + whole


def _by_inversion(words: Words, mean: float, size: int) -> npt.NDArray[np.int64]:
    """Draw ``size`` numbers by comparing words with the distribution function."""
    return np.searchsorted(_thresholds(mean), words(size), side="right").astype(np.int64)


@lru_cache(maxsize=64)
def _thresholds(mean: float) -> npt.NDArray[np.uint64]:
    """Return ``floor(2**64 * P(K <= k))`` for k = 0, 1, ... until it stops below ``2**64``.

    A word below the first gives 0, one from the last threshold on gives the number of thresholds.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        exact = Decimal(mean)
        term = (-exact).exp()
        total, k, found = term, 0, [int(term * 2**64)]
        while True:
            k += 1
            term *= exact / k
            total += term
            threshold = int(total * 2**64)
            if k > exact and threshold == found[-1]:
                break
            found.append(threshold)
    return np.array([min(t, 2**64 - 1) for t in found], dtype=np.uint64)
