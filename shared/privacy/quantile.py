"""Adaptive clipping: the clip follows a quantile of the norms, and the following is paid for.

Each client of a round says with one bit whether its update fitted within the clip. The noised
number of such clients moves the clip of the next round, geometrically, towards the value that a
``target`` share of updates fits within. Bit and update are released together and cost exactly one
Gaussian release of the plan's noise multiplier (Andrew, Thakkar, McMahan, Ramaswamy 2021,
arXiv:1905.03871, Theorem 1).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from shared import validate
from shared.errors import ConflictingSettings, SchemaMismatch

CLIP_RANGE = 1e6


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
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> QuantileClipping:
        """Read the stored form.

        Raises:
            SchemaMismatch: for other fields.
            InvalidValue: for a value out of range.
        """
        names = {field.name for field in fields(cls)}
        if not (isinstance(value, dict) and set(value) == names):
            msg = "stored quantile clipping does not have the fields of this version."
            raise SchemaMismatch(msg, hint="A newer fedslm may have written it.")
        return cls(**value)
