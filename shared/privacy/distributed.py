"""Noise that many clients add together: integers on a grid, summed modulo 2**32.

``ClippedDelta`` -> :func:`encode_update` -> ``EncodedDelta`` -> :func:`noise_share` ->
``NoisedShare`` -> (secure aggregation adds words modulo 2**32) ->
:meth:`DistributedSkellam.release` -> ``DistributedMean``. Each stage is its own type; only a noised
share has a form that can leave the device.

The clip C is G units of a grid (see :mod:`shared.privacy.encoding`). Of the noise variance
``V = (z G)**2`` each of the n announced clients adds ``V / n``. If only m of them are in the sum,
the server adds the missing ``V (1 - m / n)``.

Guarantee:
    Against whoever sees the released means and not the protocol: the noise is Skellam of variance
    V, whatever the cohort and the dropouts were, so the event of :class:`DistributedSkellam` is
    exact and sampling amplifies it. (Were the noise allowed to grow with m, a vector of d
    coordinates would reveal m, and with it who took part.) It rests on the clients in the sum
    having added their shares.

    Against the server, which knows who took part, its own part of the noise and the shares of the
    clients that collude with it: only the noise of the honest clients in the sum counts. A plan
    states that figure apart, without amplification.

    Sums that leave the range of 32 bits wrap around. That is arithmetic on integers that already
    carry their noise: it can spoil a result, never a guarantee. :func:`choose_grid` makes it a
    matter of ten standard deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shared import validate
from shared.errors import InvalidValue, SensitivityError
from shared.privacy.encoding import (
    LARGEST_VARIANCE,
    EncodedDelta,
    Integers,
    choose_grid,
    encode_update,
    require_grid,
)
from shared.privacy.events import MAX_DIMENSION, SkellamEvent
from shared.privacy.mechanism import ClippedDelta, Vector
from shared.privacy.noise import NoiseKind, NoiseSource

__all__ = [
    "DistributedMean",
    "DistributedSkellam",
    "EncodedDelta",
    "NoisedShare",
    "choose_grid",
    "encode_update",
    "noise_share",
    "to_signed",
    "top_up",
    "wire_words",
]

Words: TypeAlias = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedShare:
    """An encoded update with its share of the noise, modulo 2**32: what is masked and sent.

    One share alone has a fraction of the noise and must be hidden by a mask.

    Attributes:
        words: uint32 ``(d,)``, read-only.
        noise_source: ``"os-entropy"`` or ``"seeded-simulation"``.
    """

    words: Words = field(repr=False)
    noise_source: NoiseKind

    def __post_init__(self) -> None:
        _require_words(self.words)
        self.words.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DistributedMean:
    """The release: safe to publish at the cost of ``event``.

    Attributes:
        vector: the noised mean update, float32 ``(d,)``.
        noise_stddev: standard deviation of the noise on each coordinate of ``vector``.
        event: exactly what the accountant must be charged with.
        noise_source: of the server's part; clients say theirs in their shares.
    """

    vector: Vector = field(repr=False)
    noise_stddev: float
    event: SkellamEvent
    noise_source: NoiseKind


def noise_share(
    encoded: EncodedDelta, *, variance: float, cohort: int, source: NoiseSource
) -> NoisedShare:
    """Add one client's share of the noise and reduce modulo 2**32.

    Guarantee:
        The shares of all ``cohort`` clients together carry Skellam noise of variance ``variance``
        on every coordinate; of m clients, ``m / cohort`` of it.

    Args:
        encoded: the integers.
        variance: V of the whole cohort, in squared units of the grid, in ``(0, 2**53]``.
        cohort: n, the number of clients that were announced, >= 1.
        source: where the noise comes from.

    Returns:
        The share.

    Raises:
        InvalidValue: if a number is out of range.
        SensitivityError: if ``encoded`` is not an :class:`EncodedDelta`.
    """
    if not isinstance(encoded, EncodedDelta):
        msg = f"a {type(encoded).__name__} was to be noised, expected an EncodedDelta."
        raise SensitivityError(msg, hint="Encode it first with encode_update.")
    validate.positive(variance=variance)
    validate.positive_integer(cohort=cohort)
    noise = source.skellam(variance / cohort, encoded.integers.size)
    return NoisedShare(words=_to_words(encoded.integers + noise), noise_source=source.kind)


def wire_words(share: NoisedShare) -> Words:
    """Return what may be masked and sent.

    Raises:
        SensitivityError: for anything but a noised share.
    """
    if not isinstance(share, NoisedShare):
        msg = f"a {type(share).__name__} was to be sent, expected a NoisedShare."
        raise SensitivityError(msg, hint="Add noise first with noise_share.")
    return share.words


def top_up(
    dimension: int, *, variance: float, cohort: int, survivors: int, source: NoiseSource
) -> Integers:
    """Draw the noise that the clients missing from a sum would have added.

    Args:
        dimension: d >= 1.
        variance: V of the whole cohort.
        cohort: n, announced.
        survivors: m, in the sum, from 1 to n.
        source: where the noise comes from.

    Returns:
        Skellam integers of variance ``V (1 - m / n)``, int64 ``(d,)``; zeros if nobody is missing.

    Raises:
        InvalidValue: if a number is out of range.
    """
    validate.positive(variance=variance)
    validate.positive_integer(dimension=dimension, cohort=cohort, survivors=survivors)
    if not survivors <= cohort:
        msg = f"survivors={survivors!r}, expected at most cohort={cohort!r}."
        raise InvalidValue(msg)
    if survivors == cohort:
        return np.zeros(dimension, dtype=np.int64)
    return source.skellam(variance * ((cohort - survivors) / cohort), dimension)


def to_signed(words: Words) -> Integers:
    """Return the representatives in ``[-2**31, 2**31)`` of integers modulo 2**32."""
    return words.view(np.int32).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedSkellam:
    """The mechanism as a whole: shares on the clients, top-up and decoding on the server.

    Attributes:
        noise_multiplier: z, the standard deviation of the whole noise divided by the grid, > 0.
        clipping_norm: C > 0, in parameter units.
        grid: G, from 1 to 2**18.
        sampling_probability: of the Poisson sample that was summed, in ``(0, 1]``.

    Raises:
        InvalidValue: if a value is out of range.
    """

    noise_multiplier: float
    clipping_norm: float
    grid: int
    sampling_probability: float = 1.0

    def __post_init__(self) -> None:
        validate.positive(clipping_norm=self.clipping_norm)
        require_grid(self.grid)
        if not self.event.noise_multiplier * self.grid <= math.sqrt(LARGEST_VARIANCE):
            msg = f"noise_multiplier={self.noise_multiplier!r} is too much for grid={self.grid!r}."
            raise InvalidValue(msg)

    @property
    def event(self) -> SkellamEvent:
        """Return what one release costs, against whoever sees only released means."""
        return SkellamEvent(
            noise_multiplier=self.noise_multiplier,
            grid=self.grid,
            sampling_probability=self.sampling_probability,
        )

    @property
    def variance(self) -> float:
        """Return V, the variance of the whole noise, in squared units of the grid."""
        return (self.noise_multiplier * self.grid) ** 2

    def share(self, delta: ClippedDelta, *, cohort: int, source: NoiseSource) -> NoisedShare:
        """Encode one client's update and add its share of the noise.

        Args:
            delta: the update, clipped to this mechanism's norm.
            cohort: n, the number of clients announced, >= 1.
            source: where the noise and the coins of the rounding come from.

        Raises:
            InvalidValue: if the cohort is out of range.
            SensitivityError: if the delta has another bound, or none.
        """
        encoded = encode_update(delta, grid=self.grid, source=source)
        if encoded.bound != self.clipping_norm:
            msg = f"a delta has bound={encoded.bound!r}, expected {self.clipping_norm!r}."
            raise SensitivityError(msg, hint="Client and server must use the same plan.")
        return noise_share(encoded, variance=self.variance, cohort=cohort, source=source)

    def release(
        self,
        total: Words,
        *,
        cohort: int,
        survivors: int,
        expected_count: float,
        source: NoiseSource,
    ) -> DistributedMean:
        """Complete the noise of an unmasked sum, decode it and divide.

        Guarantee:
            The event attached, for the client whose share was summed, against observers of the
            result. A sum must be released once: the server's part would be drawn anew, and two
            releases of one sum are not one event.

        Args:
            total: sum of the survivors' shares modulo 2**32, uint32 ``(d,)``; not modified.
            cohort: n, announced to the clients.
            survivors: m, whose shares are in the sum, from 1 to n.
            expected_count: public, fixed before sampling; never the realised count.
            source: of the server's part of the noise.

        Returns:
            ``(signed(total) + top-up) * C / G / expected_count``.

        Raises:
            InvalidValue: if a number is out of range.
            SensitivityError: if ``total`` is not a 1-D uint32 array.
        """
        validate.positive(expected_count=expected_count)
        _require_words(total)
        values = to_signed(total) + top_up(
            total.size, variance=self.variance, cohort=cohort, survivors=survivors, source=source
        )
        scale = self.clipping_norm / self.grid / expected_count
        return DistributedMean(
            vector=(values * scale).astype(np.float32),
            noise_stddev=self.noise_multiplier * self.clipping_norm / expected_count,
            event=self.event,
            noise_source=source.kind,
        )


def _require_words(words: object) -> None:
    """Require a one-dimensional uint32 array of a length that the accounting covers."""
    good = isinstance(words, np.ndarray) and words.dtype == np.uint32 and words.ndim == 1
    if not (good and 1 <= words.size <= MAX_DIMENSION):  # type: ignore[attr-defined]
        msg = (
            f"noised integers are a {type(words).__name__}, expected a 1-D uint32 array of 1 to "
            f"{MAX_DIMENSION} words."
        )
        raise SensitivityError(msg)


def _to_words(values: Integers) -> Words:
    """Reduce integers modulo 2**32."""
    return (values & np.int64(2**32 - 1)).astype(np.uint32)
