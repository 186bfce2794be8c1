"""Randomness for privacy: a ChaCha20 key stream with 256 bits of key, never numpy's generators.

A generator with a short seed is no protection: torch's CPU generator keeps 32 bits and can be
searched in hours. Two kinds of source exist, and every report names the one that was used:

* ``os-entropy``: the key comes from the operating system and is never stored. For real runs.
* ``seeded-simulation``: the key is derived from the run's seed. The draws are as good, but
  whoever knows the seed can subtract the noise, so such a run protects nobody.

Normal variates are float64 from 53-bit uniforms. Floating-point noise has gaps that an attacker
who sees all 53 bits could use (Mironov 2012); releases are rounded to float32, which hides most
of them but is not a proof. Discrete noise on a grid is the remedy where a mode allows it: Skellam
variates are integers, and what is released is exact (see :mod:`shared.privacy.poisson`).
"""

from __future__ import annotations

import itertools
import os
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import InvalidValue, PrivacyError
from shared.privacy.poisson import LARGEST_MEAN, poisson
from shared.seeding import encode_labels

NoiseKind = Literal["os-entropy", "seeded-simulation"]
OS_ENTROPY: NoiseKind = "os-entropy"
SEEDED: NoiseKind = "seeded-simulation"

_KEY_BYTES = 32
_BLOCK = 1 << 16
_DOMAIN = "fedslm-noise-v1"
_TWO_PI = 2.0 * np.pi


class NoiseSource:
    """A cryptographic stream of uniforms, normals, Skellam variates, coins and integers.

    Build one with :meth:`from_os` or :meth:`seeded`. Every call draws from a fresh part of the
    key stream (its own nonce), so no two calls share a bit. A source cannot be copied or pickled:
    two copies would add the same noise twice, and the difference of two releases would cancel it.
    A process that was forked gets a new key from the operating system (``os-entropy`` only).

    Attributes:
        kind: ``"os-entropy"`` or ``"seeded-simulation"``.
    """

    __slots__ = ("_calls", "_key", "_pid", "kind")

    def __init__(self, key: bytes, *, kind: NoiseKind) -> None:
        if len(key) != _KEY_BYTES:
            msg = f"key has {len(key)} bytes, expected {_KEY_BYTES}."
            raise InvalidValue(msg)
        self.kind: NoiseKind = kind
        self._key = key
        self._calls = itertools.count()
        self._pid = os.getpid()

    @classmethod
    def from_os(cls) -> NoiseSource:
        """Return a source keyed with 256 bits from the operating system."""
        return cls(os.urandom(_KEY_BYTES), kind=OS_ENTROPY)

    @classmethod
    def seeded(cls, seed: int, *labels: str | int) -> NoiseSource:
        """Return the reproducible source of one named stream, for simulations and tests.

        Args:
            seed: the run's seed, any integer; every bit of it counts.
            *labels: what the noise is for (``"round"``, ``3``).

        Returns:
            A source of kind ``"seeded-simulation"``. It protects nobody who must be protected
            from a reader of the seed.

        Raises:
            InvalidValue: if the seed is not an integer or a label is neither string nor integer.
        """
        return cls(_derive_key(encode_labels(_DOMAIN, seed, *labels)), kind=SEEDED)

    def spawn(self, *labels: str | int) -> NoiseSource:
        """Return an independent source of the same kind.

        A seeded source gives the same child for the same labels, however much was drawn before,
        which is what lets a resumed run repeat its noise. An ``os-entropy`` source gives a fresh
        child every time: its noise must never repeat.

        Args:
            *labels: what the child is for.

        Returns:
            The child.

        Raises:
            InvalidValue: if a label is neither string nor integer.
        """
        info = encode_labels(_DOMAIN, 0, *labels)
        if self.kind == OS_ENTROPY:
            return NoiseSource.from_os()
        return NoiseSource(_derive_key(self._key, info), kind=self.kind)

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """Draw ``n`` uniform 64-bit words.

        Args:
            n: how many, at least 0.

        Returns:
            Shape ``(n,)``.

        Raises:
            InvalidValue: if ``n`` is not an integer >= 0.
        """
        _require_size(n)
        if self._pid != os.getpid() and self.kind == OS_ENTROPY:
            self._key, self._pid = os.urandom(_KEY_BYTES), os.getpid()
        nonce = bytes(8) + next(self._calls).to_bytes(8, "little")
        stream = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor()
        return np.frombuffer(stream.update(bytes(8 * n)), dtype="<u8").astype(np.uint64, copy=False)

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        """Draw ``n`` float64 numbers in ``[0, 1)``, multiples of ``2**-53``.

        Args:
            n: how many, at least 0.

        Returns:
            Shape ``(n,)``.

        Raises:
            InvalidValue: if ``n`` is not an integer >= 0.
        """
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, n: int) -> npt.NDArray[np.float64]:
        """Draw ``n`` independent standard normal numbers by Box-Muller.

        The logarithm is taken of ``1 - u`` in ``(0, 1]``, so every result is finite; the largest
        possible magnitude is 8.57, beyond which a normal variate has probability 1e-17.

        Args:
            n: how many, at least 0.

        Returns:
            Shape ``(n,)``, float64, mean 0 and variance 1.

        Raises:
            InvalidValue: if ``n`` is not an integer >= 0.
        """
        _require_size(n)
        out = np.empty(n, dtype=np.float64)
        for start in range(0, n, 2 * _BLOCK):
            stop = min(start + 2 * _BLOCK, n)
            half = (stop - start + 1) // 2
            u = self.uniform(2 * half)
            radius = np.sqrt(-2.0 * np.log1p(-u[:half]))
            angle = _TWO_PI * u[half:]
            out[start : start + half] = radius * np.cos(angle)
            out[start + half : stop] = (radius * np.sin(angle))[: stop - start - half]
        return out

    def skellam(self, variance: float, n: int) -> npt.NDArray[np.int64]:
        """Draw ``n`` independent symmetric Skellam integers: differences of two Poisson numbers.

        Sums of independent Skellam variables are Skellam, and variances add, so shares drawn by
        several parties are together the noise that one party would have added.

        Args:
            variance: in ``(0, 2**53]``.
            n: how many, at least 0.

        Returns:
            Shape ``(n,)``, int64, mean 0.

        Raises:
            InvalidValue: if the variance is out of range or ``n`` is not an integer >= 0.
        """
        _require_size(n)
        if not (_real(variance) and 0 < variance <= 2.0 * LARGEST_MEAN):
            msg = f"variance={variance!r}, expected a number in (0, 2**53]."
            raise InvalidValue(msg)
        mean = float(variance) / 2.0
        return poisson(self.words, mean, n) - poisson(self.words, mean, n)

    def bernoulli(self, p: float, n: int) -> npt.NDArray[np.bool_]:
        """Toss ``n`` independent coins.

        Args:
            p: probability of ``True`` in ``[0, 1]``; 0 never and 1 always give ``True``.
            n: how many, at least 0.

        Returns:
            Shape ``(n,)``.

        Raises:
            InvalidValue: if ``p`` is not in ``[0, 1]`` or ``n`` is not an integer >= 0.
        """
        _require_coin(p)
        return self.uniform(n) < p

    def poisson_subsample(self, population: int, probability: float) -> npt.NDArray[np.int64]:
        """Take each unit of a population with its own independent coin.

        This is the sampling that the accountant's amplification assumes; the sample may be empty,
        and an empty sample is still a release. Coins are tossed in blocks, so that a million
        units need about 1 MB.

        Args:
            population: number of units, at least 0.
            probability: of each unit, in ``[0, 1]``.

        Returns:
            The indices taken, ascending, int64, shape ``(m,)`` with random ``m``.

        Raises:
            InvalidValue: if the population is not an integer >= 0 or the probability is not in
                ``[0, 1]``.
        """
        _require_size(population)
        _require_coin(probability)
        taken = [
            np.flatnonzero(self.bernoulli(probability, min(_BLOCK, population - start))) + start
            for start in range(0, population, _BLOCK)
        ]
        return np.concatenate([np.empty(0, np.int64), *taken]).astype(np.int64, copy=False)

    def integers(self, low: int, high: int, n: int) -> npt.NDArray[np.int64]:
        """Draw ``n`` integers uniform on ``[low, high)``, exactly (by rejection).

        Args:
            low: smallest value.
            high: one above the largest; both bounds fit int64.
            n: how many, at least 0.

        Returns:
            Shape ``(n,)``, int64.

        Raises:
            InvalidValue: if the range is empty or does not fit, or ``n`` is not an integer >= 0.
        """
        _require_size(n)
        if not (_whole(low) and _whole(high) and -(2**63) <= low < high <= 2**63 - 1):
            msg = f"low={low!r}, high={high!r}, expected integers, low < high, within int64."
            raise InvalidValue(msg)
        span = high - low
        accept = (1 << 64) - (1 << 64) % span
        kept = np.empty(0, dtype=np.uint64)
        while kept.size < n:
            words = self.words(n - kept.size)
            kept = np.concatenate([kept, words[words <= np.uint64(accept - 1)]])
        offsets = kept % np.uint64(span)
        # Two's complement: adding modulo 2**64 and viewing as signed is exact for every range.
        shifted: npt.NDArray[np.uint64] = offsets + np.uint64(low % (1 << 64))
        return shifted.view(np.int64)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse copy and pickle: the same noise twice is no noise."""
        msg = "a NoiseSource cannot be copied or pickled."
        raise PrivacyError(msg, hint="Use spawn() for an independent source.")

    def __repr__(self) -> str:
        """Return the kind alone; the key never appears."""
        return f"NoiseSource(kind={self.kind!r})"


def _derive_key(material: bytes, info: bytes = b"") -> bytes:
    """Derive a 256-bit key with HKDF-SHA256."""
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=_DOMAIN.encode(), info=info).derive(material)


def _whole(value: object) -> bool:
    """Tell whether a value is an integer and not a boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _real(value: object) -> bool:
    """Tell whether a value is a real number and not a boolean."""
    return _whole(value) or isinstance(value, float)


def _require_size(n: int) -> None:
    """Require an integer of at least zero."""
    if not (_whole(n) and n >= 0):
        msg = f"n={n!r}, expected an integer >= 0."
        raise InvalidValue(msg)


def _require_coin(p: float) -> None:
    """Require a probability in [0, 1]; NaN and booleans do not pass."""
    if not (_real(p) and 0 <= p <= 1):
        msg = f"probability={p!r}, expected a number in [0, 1]."
        raise InvalidValue(msg)
