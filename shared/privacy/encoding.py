"""From a clipped update to integers of bounded norm: the grid of distributed noise.

The clip C is G units of a grid, so one unit is ``C / G``. Rounding never lets the L2 norm of an
update exceed G, so neither the dimension nor the rounding enters the accounting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from shared import validate
from shared.errors import ConflictingSettings, InvalidValue, SensitivityError
from shared.privacy.mechanism import ClippedDelta
from shared.privacy.noise import NoiseSource
from shared.privacy.poisson import LARGEST_MEAN

Integers: TypeAlias = npt.NDArray[np.int64]

LARGEST_GRID = 2**18
LARGEST_VARIANCE = 2.0 * LARGEST_MEAN
_HALF_RANGE = 2**31
_NOISE_REACH = 10.0
_ATTEMPTS = 4
_ROUNDING_REACH = 3.0
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedDelta:
    """One client's update as integers of L2 norm at most ``grid``: bounded, and still sensitive.

    It has no bytes and no array form: only :func:`noise_share` reads it.

    Attributes:
        integers: int64 ``(d,)``, read-only; never logged, printed or sent.
        grid: G, the clip in units of the grid.
        bound: the clip C in parameter units.

    Raises:
        SensitivityError: if the integers are not of norm at most G, by exact arithmetic.
    """

    integers: Integers = field(repr=False)
    grid: int
    bound: float

    def __post_init__(self) -> None:
        require_grid(self.grid)
        validate.positive(bound=self.bound)
        values = self.integers
        if not (isinstance(values, np.ndarray) and values.dtype == np.int64 and values.ndim == 1):
            msg = f"an encoded update is a {type(values).__name__}, expected a 1-D int64 array."
            raise SensitivityError(msg)
        if not _within(values, self.grid):
            msg = f"an encoded update is not within its grid={self.grid!r}."
            raise SensitivityError(msg, hint="Build it with encode_update.")
        values.setflags(write=False)

    def __array__(self, dtype: object = None, copy: object = None) -> NoReturn:
        """Refuse to become an array: it carries no noise."""
        raise _unnoised()

    def __bytes__(self) -> NoReturn:
        """Refuse to become bytes: it carries no noise."""
        raise _unnoised()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be copied or pickled: it carries no noise."""
        raise _unnoised()


def encode_update(delta: ClippedDelta, *, grid: int, source: NoiseSource) -> EncodedDelta:
    """Round a clipped update to integers without letting its norm grow.

    The update is scaled so that C becomes G, shrunk a little where rounding could carry it over the
    bound, and rounded up or down at random, up with the fractional part as probability. If the
    norm is above G nevertheless, that is tried again, four times at most; then all coordinates are
    rounded towards zero.

    Guarantee:
        The integers have L2 norm at most G, for every input.

    Accuracy:
        Unbiased up to the shrink and up to the repetition (rarer than once in a hundred). The
        shrink is about ``1.5 / G + d / (8 G**2)`` for an update at the bound, 8e-6 with G = 2**18
        and a million coordinates, and nothing for updates well inside. A grid below ``sqrt(d)`` is
        too coarse: there the shrink is severe.

    Edge cases:
        Zero gives zero. A NaN or an infinity, which ``ClippedDelta`` does not admit, gives zero.

    Args:
        delta: the clipped update.
        grid: G, from 1 to 2**18.
        source: of the coins of the rounding.

    Returns:
        The integers; the input is not modified.

    Raises:
        InvalidValue: if the grid is out of range.
        SensitivityError: if ``delta`` is not a :class:`ClippedDelta`.
    """
    if not isinstance(delta, ClippedDelta):
        msg = f"a {type(delta).__name__} was to be encoded, expected a ClippedDelta."
        raise SensitivityError(msg, hint="Clip it first with clip_update.")
    require_grid(grid)
    exact = delta.vector.astype(np.float64)
    if not np.isfinite(exact).all():
        exact = np.zeros_like(exact)
    exact *= grid / delta.bound
    exact *= _shrink(exact, grid)
    below = np.floor(exact)
    for _ in range(_ATTEMPTS):
        rounded = (below + (source.uniform(exact.size) < exact - below)).astype(np.int64)
        if _within(rounded, grid):
            return EncodedDelta(integers=rounded, grid=grid, bound=delta.bound)
    truncated = np.trunc(exact).astype(np.int64)
    return EncodedDelta(integers=truncated, grid=grid, bound=delta.bound)


def choose_grid(noise_multiplier: float, largest_cohort: int) -> int:
    """Return the finest grid on which no sum wraps around.

    Args:
        noise_multiplier: z, > 0.
        largest_cohort: the largest number of clients n that a round may have, >= 1.

    Returns:
        The largest power of two G up to 2**18 with ``n G + 10 z G < 2**31``, and noise that can be
        drawn. Ten standard deviations are exceeded with probability 1e-23 per coordinate.

    Raises:
        InvalidValue: for a number out of range.
        ConflictingSettings: if no grid is left.
    """
    validate.positive(noise_multiplier=noise_multiplier)
    validate.positive_integer(largest_cohort=largest_cohort)
    grid = LARGEST_GRID
    while grid >= 1:
        fits = (largest_cohort + _NOISE_REACH * noise_multiplier) * grid < _HALF_RANGE
        if fits and (noise_multiplier * grid) ** 2 <= LARGEST_VARIANCE:
            return grid
        grid //= 2
    msg = (
        f"noise_multiplier={noise_multiplier!r} and largest_cohort={largest_cohort!r} leave no "
        "integer grid within 32 bits."
    )
    raise ConflictingSettings(msg, hint="Use less noise or smaller cohorts.")


def require_grid(grid: int) -> None:
    """Require an integer from 1 to 2**18.

    Raises:
        InvalidValue: for anything else.
    """
    validate.positive_integer(grid=grid)
    if not grid <= LARGEST_GRID:
        msg = f"grid={grid!r}, expected at most {LARGEST_GRID}."
        raise InvalidValue(msg)


def _shrink(exact: npt.NDArray[np.float64], grid: int) -> float:
    """Return the factor s <= 1 that leaves room for random rounding of ``s * exact``.

    Rounding adds ``sum f (1 - f)`` to the expected squared norm, f being the fractional parts: at
    most ``r = min(d / 4, s * L1)``. Its standard deviation is at most ``s * L2 + sqrt(r)``.
    """
    l2, l1 = float(np.linalg.norm(exact)), float(np.abs(exact).sum())

    def needs(s: float) -> float:
        added = min(exact.size / 4.0, s * l1)
        return (s * l2) ** 2 + added + _ROUNDING_REACH * (s * l2 + math.sqrt(added))

    if needs(1.0) <= grid**2:
        return 1.0
    low, high = 0.0, min(1.0, grid / l2)
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if needs(middle) <= grid**2 else (low, middle)
    return low


def _within(values: Integers, grid: int) -> bool:
    """Tell whether integers have L2 norm at most ``grid``, exactly."""
    if values.size and not (values.max() <= grid and values.min() >= -grid):
        return False
    # Squares are at most 2**36, so a chunk's sum stays below 2**56; Python adds the chunks.
    chunks = (values[start : start + _CHUNK] for start in range(0, values.size, _CHUNK))
    return sum(int(np.dot(chunk, chunk)) for chunk in chunks) <= grid**2


def _unnoised() -> SensitivityError:
    """Return the error for an encoded update that was about to leave without noise."""
    msg = "an EncodedDelta carries no noise and must not leave the device."
    return SensitivityError(msg, hint="Add noise first with noise_share.")
