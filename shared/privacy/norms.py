"""Norms and sums of long float32 vectors, a block at a time, in float64.

A block of float64 numbers stays in the processor's cache, so a vector is read from memory once a
pass and nothing as long as the vector is made. How far a norm is off is proven, not hoped for: see
:data:`NORM_ERROR`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

BLOCK: Final = 1 << 17
"""Numbers that are worked on at once: 1 MiB of float64."""

# Short enough that BLAS does not share one dot product out among threads (OpenBLAS does from
# 10,001 numbers on): the same bits whatever the number of threads.
_ROW: Final = 1 << 13

NORM_ERROR: Final = 2.0**-40
"""Largest relative error of :func:`norm_of`, for every length.

The square of a float32 is exact in float64 (48 bits). A dot product of 2**13 exact squares, added
in any order, is off by at most ``2**13 u / (1 - 2**13 u)`` with ``u = 2**-53`` (Higham 2002,
section 3.1), the sum over rows is correctly rounded (``math.fsum``), and so is the root, which
halves what came before: ``2**-41 + 2u``, less than ``2**-40``.
"""

# What a clipped update keeps to its bound for roundings that come after the norm.
_MARGIN: Final = 1e-9
# The smallest positive float32: no other vector than zero is shorter.
_SMALLEST: Final = 2.0**-149

Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]


def norm_of(vector: Vector) -> float:
    """Return the L2 norm of a float32 vector ``(d,)``.

    Guarantee:
        A relative error of at most :data:`NORM_ERROR`; it cannot overflow or underflow. NaN or
        infinite if a coordinate is, and only then.
    """
    squares: list[float] = []
    with np.errstate(over="ignore", invalid="ignore"):
        for _, block in _blocks(vector):
            whole = block.size // _ROW * _ROW
            rows, rest = block[:whole].reshape(-1, _ROW), block[whole:]
            squares += np.vecdot(rows, rows).tolist()
            squares.append(float(np.dot(rest, rest)))
    return math.sqrt(math.fsum(squares))


def is_within(norm: float, bound: float) -> bool:
    """Tell whether a vector with this :func:`norm_of` is certainly no longer than ``bound``.

    False also where the error of the norm leaves it open, and for a norm that is not finite.
    """
    return norm <= bound * (1.0 - NORM_ERROR)


def clip_factor(norm: float, bound: float) -> float:
    """Return what a vector with this :func:`norm_of` is multiplied by to be within ``bound``.

    Guarantee:
        The vector times the factor is no longer than ``bound``, in exact arithmetic and with every
        product rounded to float64, for up to 2**40 coordinates: ``1 - 1e-9`` is far below
        ``1 - 2**-40`` less the roundings of norm, factor and products.

    Edge cases:
        1 for what is within the bound. 0 for a norm that is not finite, and for a bound below the
        smallest float32, where products could be rounded up: nothing but zero is that short.
    """
    if is_within(norm, bound):
        return 1.0
    if not (math.isfinite(norm) and bound >= _SMALLEST):
        return 0.0
    return bound / norm * (1.0 - _MARGIN)


def add_scaled(total: Floats, vector: Vector, factor: float) -> None:
    """Add ``factor * vector`` to ``total`` in place; ``total`` is untouched where it is 0.

    Args:
        total: float64 ``(d,)``.
        vector: float32 ``(d,)``, finite unless the factor is 0.
        factor: finite; 1 adds the numbers as they are.
    """
    if factor == 0.0:
        return
    for start, block in _blocks(vector):
        if factor != 1.0:
            np.multiply(block, factor, out=block)
        part = total[start : start + block.size]
        np.add(part, block, out=part)


def scaled_towards_zero(vector: Vector, factor: float) -> Vector:
    """Return ``factor * vector`` as float32, each product rounded towards zero.

    Args:
        vector: float32 ``(d,)``, finite unless the factor is 0.
        factor: in ``[0, 1]``; 1 copies the numbers as they are, 0 gives zeros.
    """
    if factor == 1.0:
        return vector.copy()
    result = np.zeros_like(vector)
    if factor == 0.0:
        return result
    for start, block in _blocks(vector):
        np.multiply(block, factor, out=block)
        rounded = result[start : start + block.size]
        rounded[:] = block
        too_far = np.abs(rounded) > np.abs(block)
        # A sign and a magnitude: one less in the bits is the next number towards zero, and none of
        # these is zero, as its magnitude was rounded up.
        bits = rounded.view(np.int32)
        np.subtract(bits, too_far, out=bits)
    return result


def _blocks(vector: Vector) -> Iterator[tuple[int, Floats]]:
    """Yield where each block starts and its numbers in float64, always in the same memory."""
    wide = np.empty(min(BLOCK, vector.size), dtype=np.float64)
    for start in range(0, vector.size, BLOCK):
        part = vector[start : start + BLOCK]
        block = wide[: part.size]
        np.copyto(block, part)
        yield start, block
