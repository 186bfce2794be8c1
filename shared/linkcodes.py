"""Codes of a flat vector for slow links: half precision, scaled integers, the largest numbers.

A code's length is fixed by the number of values alone, never by the values, so that a length says
nothing. Integers are rounded at random such that the mean of what is read is what was written; the
error of a number between two steps is ``step ** 2 * f * (1 - f)`` in variance, where ``f`` is how
far it lies above the lower one.

What is read comes from somebody else: its length is compared before anything is made of it, scales
are finite and not negative, levels are those a writer makes, and padding is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidValue, SchemaMismatch
from shared.lora import Vector

Uniform = Callable[[int], NDArray[np.float64]]
LARGEST_HALF: Final = 65504.0
INT8: Final = 127
INT4: Final = 7
_SCALE_BYTES: Final = 2


class Code(Protocol):
    """One way to write a vector of known size as bytes of known number."""

    @property
    def name(self) -> str:
        """Return the name that a message carries."""

    @property
    def stretch(self) -> float:
        """Return how much longer, at most, what is read may be than what was written (L2)."""

    def length(self, size: int) -> int:
        """Return the bytes of a vector of ``size`` numbers."""

    def encode(self, vector: Vector, uniform: Uniform | None) -> bytes:
        """Write a finite vector; ``uniform`` draws from [0, 1), None rounds to nearest."""

    def decode(self, data: bytes, size: int) -> Vector:
        """Read a vector of exactly ``size`` numbers; raises SchemaMismatch."""


@dataclass(frozen=True, slots=True)
class Half:
    """Half precision, rounded to nearest; beyond 65504 the largest number of that sign."""

    name: str = "fp16"
    stretch: float = 1.0 + 2.0**-10

    def length(self, size: int) -> int:
        """Two bytes a number."""
        return 2 * size

    def encode(self, vector: Vector, uniform: Uniform | None) -> bytes:
        """Write a finite vector."""
        del uniform
        require_finite(vector)
        return np.clip(vector, -LARGEST_HALF, LARGEST_HALF).astype("<f2").tobytes()

    def decode(self, data: bytes, size: int) -> Vector:
        """Read a vector; raises SchemaMismatch."""
        require_length(data, self.length(size))
        found = np.frombuffer(data, dtype="<f2")
        if not np.isfinite(found).all():
            msg = "A coded update holds numbers that are not finite."
            raise SchemaMismatch(msg)
        return found.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Integers from ``-levels`` to ``levels``, with one half-precision scale for each block.

    A scale is the largest magnitude of its block over ``levels``, rounded up, so that no number is
    out of range and rounding stays unbiased; up to a magnitude of ``65504 * levels``.

    Attributes:
        name: ``"int8"`` or ``"int4"``.
        levels: 127 for a byte, 7 for half a byte.
        block: numbers that share a scale.
    """

    name: str
    levels: int
    block: int

    @property
    def stretch(self) -> float:
        """A number moves by less than a step, and a step is at most the block's norm / levels."""
        return 1.0 + (1.0 + 2.0**-9) * math.sqrt(self.block) / self.levels

    def length(self, size: int) -> int:
        """Two bytes a block, and one byte or half a byte a number."""
        return _SCALE_BYTES * self._blocks(size) + self._level_bytes(size)

    def encode(self, vector: Vector, uniform: Uniform | None) -> bytes:
        """Write a finite vector; rounds at random, or to nearest without ``uniform``."""
        require_finite(vector)
        scales = self.scales(vector)
        steps = np.repeat(scales.astype(np.float64), self.block)[: vector.size]
        ratio = np.zeros(vector.size, dtype=np.float64)
        np.divide(vector, steps, out=ratio, where=steps > 0)
        if uniform is None:
            rounded = np.rint(ratio)
        else:
            lower = np.floor(ratio)
            rounded = lower + (uniform(vector.size) < ratio - lower)
        found = np.clip(rounded, -self.levels, self.levels).astype(np.int8)
        return scales.astype("<f2").tobytes() + self._pack(found)

    def decode(self, data: bytes, size: int) -> Vector:
        """Read a vector; raises SchemaMismatch."""
        require_length(data, self.length(size))
        cut = _SCALE_BYTES * self._blocks(size)
        scales = np.frombuffer(data[:cut], dtype="<f2")
        found = self._unpack(data[cut:], size)
        if not (np.isfinite(scales) & (scales >= 0)).all():
            msg = "A coded update has a scale that is negative or not finite."
            raise SchemaMismatch(msg)
        if (found < -self.levels).any():
            msg = f"A coded update has a level below -{self.levels}."
            raise SchemaMismatch(msg)
        # 7 and 11 bits: the product is exact in 24.
        steps = np.repeat(scales.astype(np.float32), self.block)[:size]
        product: Vector = steps * found.astype(np.float32)
        return product

    def scales(self, vector: Vector) -> NDArray[np.float16]:
        """Return the scale of each block, at least its largest magnitude over ``levels``."""
        padded = np.zeros(self._blocks(vector.size) * self.block, dtype=np.float64)
        padded[: vector.size] = np.abs(vector)
        exact = np.minimum(padded.reshape(-1, self.block).max(axis=1) / self.levels, LARGEST_HALF)
        scales: NDArray[np.float16] = exact.astype(np.float16)
        short = scales.astype(np.float64) < exact
        above: NDArray[np.float16] = np.nextafter(scales, np.float16(np.inf))
        scales[short] = above[short]
        return scales

    def _blocks(self, size: int) -> int:
        return -(-size // self.block)

    def _level_bytes(self, size: int) -> int:
        return size if self.levels == INT8 else -(-size // 2)

    def _pack(self, found: NDArray[np.int8]) -> bytes:
        """Write levels as bytes, or two of them in one, the first in the low half."""
        if self.levels == INT8:
            return found.tobytes()
        halves = np.zeros(2 * self._level_bytes(found.size), dtype=np.uint8)
        halves[: found.size] = found.view(np.uint8) & 0x0F
        return (halves[0::2] | (halves[1::2] << 4)).tobytes()

    def _unpack(self, data: bytes, size: int) -> NDArray[np.int8]:
        """Read levels."""
        if self.levels == INT8:
            return np.frombuffer(data, dtype=np.int8)
        packed = np.frombuffer(data, dtype=np.uint8)
        halves = np.empty(2 * packed.size, dtype=np.uint8)
        halves[0::2], halves[1::2] = packed & 0x0F, packed >> 4
        if halves[size:].any():
            msg = "A coded update has padding that is not zero."
            raise SchemaMismatch(msg)
        return ((halves[:size] ^ 0x08).astype(np.int16) - 8).astype(np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The numbers of largest magnitude, the same count of them in every update, and a map.

    The map has one bit a number: order and uniqueness of the places need no check, and its length
    is fixed.

    Attributes:
        keep: share of the numbers that is sent.
        values: code of the numbers.
        name: ``"topk"``.
    """

    keep: float
    values: Code
    name: str = "topk"

    @property
    def stretch(self) -> float:
        """That of the code of the numbers."""
        return self.values.stretch

    def count(self, size: int) -> int:
        """Return how many of ``size`` numbers are sent: at least one, if there is one."""
        return min(size, max(1, math.ceil(self.keep * size)))

    def length(self, size: int) -> int:
        """One bit a number, and what the numbers that are sent take."""
        return -(-size // 8) + self.values.length(self.count(size))

    def places(self, vector: Vector) -> NDArray[np.intp]:
        """Return the places of the numbers that are sent, ascending; of equal ones the first."""
        order = np.argsort(-np.abs(vector), kind="stable")
        return np.sort(order[: self.count(vector.size)])

    def encode(self, vector: Vector, uniform: Uniform | None) -> bytes:
        """Write a finite vector."""
        require_finite(vector)
        chosen = np.zeros(vector.size, dtype=np.bool_)
        chosen[self.places(vector)] = True
        return np.packbits(chosen).tobytes() + self.values.encode(vector[chosen], uniform)

    def decode(self, data: bytes, size: int) -> Vector:
        """Read a vector; raises SchemaMismatch."""
        require_length(data, self.length(size))
        cut = -(-size // 8)
        bits = np.unpackbits(np.frombuffer(data[:cut], dtype=np.uint8)).view(np.bool_)
        if bits[size:].any() or int(bits.sum()) != self.count(size):
            msg = f"A coded update marks other than {self.count(size)} of {size} numbers."
            raise SchemaMismatch(msg)
        found = np.zeros(size, dtype=np.float32)
        found[bits[:size]] = self.values.decode(data[cut:], self.count(size))
        return found


def require_length(data: bytes, expected: int) -> None:
    """Refuse data of another length.

    Raises:
        SchemaMismatch: saying both.
    """
    if len(data) != expected:
        msg = f"Found a coded vector of {len(data)} bytes, expected {expected}."
        raise SchemaMismatch(msg)


def require_finite(vector: Vector) -> None:
    """Refuse to write NaN or infinity.

    Raises:
        InvalidValue: if there is one.
    """
    if not np.isfinite(vector).all():
        msg = "A vector with NaN or infinity cannot be coded."
        raise InvalidValue(msg)
