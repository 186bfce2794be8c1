"""The way from one client's update to a noised mean, in types that cannot be skipped.

``AdapterDelta`` -> :func:`clip_update` -> ``ClippedDelta`` -> :class:`ClippedSum` ->
:meth:`GaussianMechanism.release` -> ``NoisedMean``. Each stage is its own type: an unclipped
delta cannot be summed, and a sum cannot be read before noise is added. The sensitivity is the
clipping norm by construction, not a setting of its own.

A server that needs only the sum goes from the first to the third in one step,
:meth:`ClippedSum.clip_and_add`: the sum measures the update itself, once, and takes nobody's word
for a norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shared import validate
from shared.errors import SensitivityError
from shared.privacy.accountant import relation_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.noise import NoiseKind, NoiseSource
from shared.privacy.norms import add_scaled, clip_factor, is_within, norm_of, scaled_towards_zero

Vector: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterDelta:
    """One client's raw change of the adapter: sensitive, unbounded, possibly not finite.

    Attributes:
        vector: all trained factors as one float32 vector ``(d,)``; never logged or printed.

    Raises:
        SensitivityError: if it is not a one-dimensional float32 array.
    """

    vector: Vector = field(repr=False)

    def __post_init__(self) -> None:
        _require_vector(self.vector)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClippedDelta:
    """A change whose L2 norm is at most ``bound``: still sensitive, but bounded.

    Attributes:
        vector: float32 ``(d,)``, finite, read-only; never logged or printed.
        bound: the clipping norm C > 0.

    Raises:
        SensitivityError: if the vector is not finite or may be longer than the bound, so that the
            type itself is the proof. Nobody hands in a norm: it is taken here.
    """

    vector: Vector = field(repr=False)
    bound: float

    def __post_init__(self) -> None:
        validate.positive(bound=self.bound)
        _require_vector(self.vector)
        if not is_within(norm_of(self.vector), self.bound):
            msg = f"a delta is not within its bound={self.bound!r}."
            raise SensitivityError(msg, hint="Build it with clip_update.")
        self.vector.setflags(write=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoisedMean:
    """The release: safe to publish at the cost of ``event``.

    Attributes:
        vector: the noised mean update, float32 ``(d,)``.
        noise_stddev: standard deviation of the noise on each coordinate of ``vector``.
        event: exactly what the accountant must be charged with.
        noise_source: ``"os-entropy"`` or ``"seeded-simulation"``.
    """

    vector: Vector = field(repr=False)
    noise_stddev: float
    event: GaussianEvent
    noise_source: NoiseKind


def clip_update(delta: AdapterDelta, *, clipping_norm: float) -> ClippedDelta:
    """Scale one client's update to a bounded L2 norm.

    The norm is taken over all coordinates as one vector, in float64. Values are rounded towards
    zero on the way back to float32, so rounding cannot push the norm above the bound.

    Guarantee:
        ``norm(result) <= clipping_norm`` for every input, in exact arithmetic. Client-level
        sensitivity of a sum: C under add-or-remove-one, 2C under replace-one. Clipping twice
        changes nothing.

    Edge cases:
        Zero, and anything within the bound, is returned unchanged; the last ``2**-39`` of the
        bound, where a norm in float64 decides nothing, counts as beyond it. Any NaN or infinity
        gives the zero update, so that a failure looks like an update with nothing to say.

    Args:
        delta: the raw update; a server also passes what it received through here, so that a
            client that lies about clipping cannot exceed the bound.
        clipping_norm: C > 0, in parameter units.

    Returns:
        The clipped update with its bound; the input is not modified.

    Raises:
        InvalidValue: if ``clipping_norm`` is not finite and positive.

    References:
        McMahan et al. 2018, arXiv:1710.06963, Algorithm 1 (FlatClip).
    """
    validate.positive(clipping_norm=clipping_norm)
    factor = clip_factor(norm_of(delta.vector), clipping_norm)
    return ClippedDelta(vector=scaled_towards_zero(delta.vector, factor), bound=clipping_norm)


class ClippedSum:
    """A running sum of clipped updates, one added at a time; its value cannot be read.

    Guarantee:
        Every update is measured and clipped by the sum itself, whichever way it comes, and moves
        it by at most C in exact arithmetic (the sum is kept in float64). Memory: the sum, and a
        block of an update.

    Args:
        dimension: d >= 1.
        clipping_norm: the bound C > 0 that every update must carry.

    Raises:
        InvalidValue: if an argument is out of range.
    """

    __slots__ = ("_sum", "clipping_norm", "count", "dimension")

    def __init__(self, *, dimension: int, clipping_norm: float) -> None:
        validate.positive_integer(dimension=dimension)
        validate.positive(clipping_norm=clipping_norm)
        self.dimension = dimension
        self.clipping_norm = clipping_norm
        self.count = 0
        self._sum: npt.NDArray[np.float64] | None = np.zeros(dimension, dtype=np.float64)

    def add(self, delta: ClippedDelta) -> float:
        """Add one client's update with weight one; its client must not be added again.

        The norm is checked again here, so that a vector changed after clipping is clipped again.

        Returns:
            The norm of the update as it came; sensitive.

        Raises:
            SensitivityError: if the bound or the dimension differ, or the sum was released.
        """
        _require(delta, ClippedDelta, hint="Clip it first with clip_update.")
        if delta.bound != self.clipping_norm:
            msg = f"a delta has bound={delta.bound!r}, expected {self.clipping_norm!r}."
            raise SensitivityError(msg, hint="Client and server must use the same plan.")
        return self._clip_and_add(delta.vector)

    def clip_and_add(self, delta: AdapterDelta) -> float:
        """Clip one client's raw update and add it; as :func:`clip_update` and :meth:`add`.

        The clipped update is added in float64 and never stored, so it is not rounded to float32 in
        between: the two ways differ by less than ``2**-22`` of each coordinate.

        Returns:
            The norm of the update as it came, NaN or infinite if a coordinate is; sensitive.

        Raises:
            SensitivityError: if the dimension differs, or the sum was released.
        """
        _require(delta, AdapterDelta, hint="Wrap what a client sent in one.")
        return self._clip_and_add(delta.vector)

    def _clip_and_add(self, vector: Vector) -> float:
        """Measure an update once, add it scaled to the bound, and return its norm."""
        if vector.size != self.dimension:
            msg = f"a delta has {vector.size} coordinates, expected {self.dimension}."
            raise SensitivityError(msg)
        if self._sum is None:
            msg = "the sum was already released."
            raise SensitivityError(msg, hint="A second release needs a second charge.")
        norm = norm_of(vector)
        add_scaled(self._sum, vector, clip_factor(norm, self.clipping_norm))
        self.count += 1
        return norm

    def take(self) -> npt.NDArray[np.float64]:
        """Hand the un-noised sum to the mechanism, once.

        Only mechanisms may call this: the value is sensitive.

        Raises:
            SensitivityError: the second time, because two noised copies of one sum are two
                releases.
        """
        if self._sum is None:
            msg = "the sum was already released."
            raise SensitivityError(msg, hint="A second release needs a second charge.")
        total, self._sum = self._sum, None
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianMechanism:
    """Adds normal noise to a clipped sum and divides by a public number.

    Attributes:
        noise_multiplier: noise standard deviation divided by C, > 0.
        clipping_norm: C > 0.
        sampling_probability: of the Poisson sample that was summed, in ``(0, 1]``; it goes into
            the event, so what runs is what is accounted.

    Raises:
        InvalidValue: if a value is out of range.
    """

    noise_multiplier: float
    clipping_norm: float
    sampling_probability: float = 1.0

    def __post_init__(self) -> None:
        validate.positive(clipping_norm=self.clipping_norm)
        GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_probability=self.sampling_probability
        )

    @property
    def noise_stddev(self) -> float:
        """Return the standard deviation of the noise on each coordinate of the sum."""
        return self.noise_multiplier * self.clipping_norm

    @property
    def event(self) -> GaussianEvent:
        """Return what one release costs."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_probability=self.sampling_probability
        )

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return how far one unit can move the sum: C, or 2C under replace-one.

        The noise does not depend on it: the multiplier is defined relative to C under both
        relations, and the accountant charges replace-one for the doubled shift.
        """
        doubled = relation_of(relation) is NeighboringRelation.REPLACE_ONE
        return self.clipping_norm * (2.0 if doubled else 1.0)

    def release(
        self, total: ClippedSum, *, expected_count: float, source: NoiseSource
    ) -> NoisedMean:
        """Release ``(sum + N(0, (z C)**2)) / expected_count``.

        Guarantee:
            The event attached, for the unit whose updates were summed. An empty sum is released
            like any other, as noise alone.

        Args:
            total: the clipped sum; it can be released only once.
            expected_count: public, fixed before sampling (``sampling_probability * population``);
                never the realised count, which is not public.
            source: where the noise comes from.

        Returns:
            The noised mean.

        Raises:
            InvalidValue: if ``expected_count`` is not finite and positive.
            SensitivityError: if the sum has another bound or was already released.
        """
        validate.positive(expected_count=expected_count)
        if total.clipping_norm != self.clipping_norm:
            msg = f"the sum has bound={total.clipping_norm!r}, expected {self.clipping_norm!r}."
            raise SensitivityError(msg, hint="Noise must be calibrated to the clip in force.")
        values = total.take()
        values += self.noise_stddev * source.normal(values.size)
        values /= expected_count
        return NoisedMean(
            vector=values.astype(np.float32),
            noise_stddev=self.noise_stddev / expected_count,
            event=self.event,
            noise_source=source.kind,
        )


def _require(delta: object, kind: type, *, hint: str) -> None:
    """Require the type that says what a vector is, also from callers that no type checker saw."""
    if not isinstance(delta, kind):
        msg = f"a {type(delta).__name__} was to be summed, expected a {kind.__name__}."
        raise SensitivityError(msg, hint=hint)


def _require_vector(vector: object) -> None:
    """Require a one-dimensional float32 array with at least one coordinate."""
    if not (isinstance(vector, np.ndarray) and vector.dtype == np.float32 and vector.ndim == 1):
        msg = f"an update is a {type(vector).__name__}, expected a 1-D float32 array."
        raise SensitivityError(msg)
