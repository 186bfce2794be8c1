"""Adaptive clipping: the clip follows a quantile of the norms, and the following is paid for.

Each client of a round says with one bit whether its update fitted within the clip. The noised
number of such clients moves the clip of the next round, geometrically, towards the value that a
``target`` share of updates fits within. Bit and update are released together and cost exactly one
Gaussian release of the plan's noise multiplier (Andrew, Thakkar, McMahan, Ramaswamy 2021,
arXiv:1905.03871, Theorem 1).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from shared import validate
from shared.errors import ConflictingSettings, SensitivityError
from shared.privacy.accountant import relation_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.mechanism import AdapterDelta, ClippedDelta, ClippedSum, NoisedMean
from shared.privacy.noise import NoiseSource
from shared.privacy.stored import stored_fields

CLIP_RANGE = 1e6
# A clipped update ends this close to the clip: float32 rounding is below 2e-7 of it.
_WITHIN = 1.0 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileClipping:
    """How the clip of a client update follows the updates.

    Attributes:
        target: share of updates that should fit within the clip, in ``(0, 1)``.
        learning_rate: eta > 0; with no noise and everything above the clip it grows by
            ``exp(eta * target)`` a round.
        count_noise_stddev: sigma_b > 0, standard deviation of the noise on the number of clients
            within the clip, in clients.
        initial: clip of the first round, > 0, in parameter units; no later clip is outside
            ``[initial / 1e6, initial * 1e6]``.

    Raises:
        InvalidValue: for a value out of range.
    """

    target: float
    learning_rate: float
    count_noise_stddev: float
    initial: float

    def __post_init__(self) -> None:
        validate.open_unit(target=self.target)
        validate.positive(
            learning_rate=self.learning_rate,
            count_noise_stddev=self.count_noise_stddev,
            initial=self.initial,
        )
        validate.positive(smallest_clip=self.smallest, largest_clip=self.largest)

    @property
    def smallest(self) -> float:
        """Return the bound below which the clip never falls."""
        return self.initial / CLIP_RANGE

    @property
    def largest(self) -> float:
        """Return the bound above which the clip never grows."""
        return self.initial * CLIP_RANGE

    def split(self, noise_multiplier: float) -> float:
        """Return the noise multiplier left for the update when both parts together cost ``z``.

        A client contributes its update, of norm at most C, and a centred bit of magnitude 1/2.
        Divided by the noise on each, they form one vector of squared norm at most
        ``1/z_delta**2 + (1/2)**2/sigma_b**2``, with independent standard normal noise on every
        coordinate. That is one Gaussian release of multiplier z exactly when the sum is ``1/z**2``.

        Args:
            noise_multiplier: z > 0 of the joint release, the plan's.

        Returns:
            ``(z**-2 - (2 sigma_b)**-2)**-0.5``, above z.

        Raises:
            InvalidValue: if z is not finite and positive.
            ConflictingSettings: if the count alone costs all that z allows
                (``2 * count_noise_stddev <= z``).
        """
        validate.positive(noise_multiplier=noise_multiplier)
        of_count = 2.0 * self.count_noise_stddev
        if not of_count > noise_multiplier:
            msg = (
                f"count_noise_stddev={self.count_noise_stddev!r} with noise_multiplier="
                f"{noise_multiplier!r}, expected 2 * count_noise_stddev > noise_multiplier."
            )
            hint = "Noise the count more; a twentieth of the cohort is usual."
            raise ConflictingSettings(msg, hint=hint)
        # sqrt((1 - r) (1 + r)) rather than a difference of two inverse squares: no cancellation.
        ratio = noise_multiplier / of_count
        return noise_multiplier / math.sqrt((1.0 - ratio) * (1.0 + ratio))

    def next_clip(self, clip: float, fraction_within: float) -> float:
        """Return the clip of the next round; post-processing of the noised fraction.

        ``C * exp(-eta * (fraction - target))``: too few within the clip and it grows, too many and
        it shrinks.

        Args:
            clip: C > 0 of this round.
            fraction_within: the noised share of clients within C; noise may put it outside [0, 1].

        Raises:
            InvalidValue: if the clip is not finite and positive or the fraction is not finite.
        """
        validate.positive(clip=clip)
        validate.finite(fraction_within=fraction_within)
        moved = math.log(clip) - self.learning_rate * (fraction_within - self.target)
        low, high = math.log(self.smallest), math.log(self.largest)
        return min(max(math.exp(min(max(moved, low), high)), self.smallest), self.largest)

    def to_json(self) -> dict[str, object]:
        """Return the stored form; whole numbers become floats, so that 1 and 1.0 are one."""
        return {name: float(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: object) -> QuantileClipping:
        """Read the stored form.

        Raises:
            SchemaMismatch: for other fields.
            InvalidValue: for a value out of range.
        """
        return cls(**stored_fields(cls, value))


class QuantileSum:
    """A running sum of clipped updates and of the centred bits that go with them.

    The bit of a client is +1/2 if its update is within the clip and -1/2 if it was cut down to it.
    It is read off the norm that the sum takes to clip, so nothing beyond the update has to travel;
    what is not finite counts as the zero update, which is within. Whatever the update, the bit has
    magnitude 1/2: a client that lies about it moves it no further.

    Args:
        dimension: d >= 1.
        clipping_norm: the bound C > 0 that every update must carry.

    Raises:
        InvalidValue: if an argument is out of range.
    """

    __slots__ = ("_centred", "_updates")

    def __init__(self, *, dimension: int, clipping_norm: float) -> None:
        self._updates = ClippedSum(dimension=dimension, clipping_norm=clipping_norm)
        self._centred = 0.0

    @property
    def clipping_norm(self) -> float:
        """Return the bound C."""
        return self._updates.clipping_norm

    @property
    def count(self) -> int:
        """Return how many updates are in the sum; not released."""
        return self._updates.count

    def add(self, delta: ClippedDelta) -> float:
        """Add one client's update and its bit; its client must not be added again.

        Returns:
            The norm of the update as it came; sensitive.

        Raises:
            SensitivityError: if the bound or the dimension differ, or the sum was released.
        """
        return self._add_bit(self._updates.add(delta))

    def clip_and_add(self, delta: AdapterDelta) -> float:
        """Clip one client's raw update and add it and its bit; as ``clip_update`` and :meth:`add`.

        Returns:
            The norm of the update as it came, NaN or infinite if a coordinate is; sensitive.

        Raises:
            SensitivityError: if the dimension differs, or the sum was released.
        """
        return self._add_bit(self._updates.clip_and_add(delta))

    def _add_bit(self, norm: float) -> float:
        """Add the bit of an update of this norm, and return the norm."""
        within = norm <= self.clipping_norm * _WITHIN or not math.isfinite(norm)
        self._centred += 0.5 if within else -0.5
        return norm

    def take(self) -> tuple[npt.NDArray[np.float64], float]:
        """Hand the un-noised sum and count to the mechanism, once; both are sensitive.

        Raises:
            SensitivityError: the second time.
        """
        return self._updates.take(), self._centred


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantileRelease:
    """What one round releases; all of it together costs ``mean.event``, once.

    Attributes:
        mean: the noised mean update.
        fraction_within: noised share of the expected cohort that fitted within the clip; the noise
            may put it outside ``[0, 1]``.
        next_clip: the clip of the next round, computed from ``fraction_within`` alone.
    """

    mean: NoisedMean
    fraction_within: float
    next_clip: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileGaussian:
    """Adds noise to a clipped sum and to the count that moves the clip.

    The guarantee of a run is that of its rounds composed: each is a Gaussian release of multiplier
    z whatever the clip, and the clip depends only on what earlier rounds released.

    Attributes:
        noise_multiplier: z > 0 of the joint release; the update alone gets more noise.
        clipping: how the clip moves.
        clipping_norm: C > 0, the clip in force.
        sampling_probability: of the Poisson sample that was summed, in ``(0, 1]``. Update and bit
            are sampled by the same coin, so they are amplified as one release.

    Raises:
        InvalidValue: if a value is out of range.
        SensitivityError: if the clip is outside the range it may move in.
        ConflictingSettings: if the count costs all that z allows.
    """

    noise_multiplier: float
    clipping: QuantileClipping
    clipping_norm: float
    sampling_probability: float = 1.0

    def __post_init__(self) -> None:
        validate.positive(clipping_norm=self.clipping_norm)
        if not self.clipping.smallest <= self.clipping_norm <= self.clipping.largest:
            msg = (
                f"clipping_norm={self.clipping_norm!r}, expected a number in "
                f"[{self.clipping.smallest!r}, {self.clipping.largest!r}]."
            )
            raise SensitivityError(msg, hint="The clip was not moved by this plan.")
        self.clipping.split(self.event.noise_multiplier)

    @property
    def event(self) -> GaussianEvent:
        """Return what one release costs, count included."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_probability=self.sampling_probability
        )

    @property
    def noise_stddev(self) -> float:
        """Return the standard deviation of the noise on each coordinate of the sum."""
        return self.clipping.split(self.noise_multiplier) * self.clipping_norm

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return how far one unit can move the sum: C, or 2C under replace-one.

        The centred count moves by 1/2, or by 1 under replace-one: both parts double together, so
        the joint release is a Gaussian of multiplier z, or z/2, and the accountant needs no case
        of its own.
        """
        doubled = relation_of(relation) is NeighboringRelation.REPLACE_ONE
        return self.clipping_norm * (2.0 if doubled else 1.0)

    def release(
        self, total: QuantileSum, *, expected_count: float, source: NoiseSource
    ) -> QuantileRelease:
        """Release the noised mean and the noised share within the clip.

        The share is ``(centred count + N(0, sigma_b**2)) / expected_count + 1/2``. An empty cohort
        is released like any other, and says one half apart from noise.

        Args:
            total: updates and bits; they can be released only once.
            expected_count: public, fixed before sampling (``sampling_probability * population``).
            source: where the noise comes from.

        Returns:
            The release and the next clip.

        Raises:
            InvalidValue: if ``expected_count`` is not finite and positive.
            SensitivityError: if the sum has another bound or was already released.
        """
        validate.positive(expected_count=expected_count)
        if total.clipping_norm != self.clipping_norm:
            msg = f"the sum has bound={total.clipping_norm!r}, expected {self.clipping_norm!r}."
            raise SensitivityError(msg, hint="Noise must be calibrated to the clip in force.")
        values, centred = total.take()
        values += self.noise_stddev * source.normal(values.size)
        values /= expected_count
        centred += self.clipping.count_noise_stddev * float(source.normal(1)[0])
        fraction = centred / expected_count + 0.5
        mean = NoisedMean(
            vector=values.astype(np.float32),
            noise_stddev=self.noise_stddev / expected_count,
            event=self.event,
            noise_source=source.kind,
        )
        return QuantileRelease(
            mean=mean,
            fraction_within=fraction,
            next_clip=self.clipping.next_clip(self.clipping_norm, fraction),
        )
