"""The terms of distributed noise: whom secure aggregation trusts, and what it tolerates."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from shared import validate
from shared.errors import ConflictingSettings
from shared.privacy.stored import stored_fields

MIN_COHORT = 3
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedTerms:
    """On which assumptions the noise that clients add together is enough.

    Each of the n clients of a cohort adds 1/n of the noise variance V. A round is released only if
    at least ``survivor_fraction * n`` of them are in the sum, and at most
    ``(1 - honest_fraction) * n`` tell the server their share, so at least
    ``(survivor_fraction + honest_fraction - 1) * V`` is unknown to the server.

    Attributes:
        grid: the clip in units of the integer grid, >= 1.
        honest_fraction: share of any cohort that does not collude with the server, in ``(0, 1]``.
        survivor_fraction: share of a cohort that must be in the sum, in ``(0, 1]``.
        min_cohort: least size of a cohort, >= 3; a smaller sample is filled up with clients that
            take part with an empty update.

    Raises:
        InvalidValue: for a value out of range.
        ConflictingSettings: if the two fractions leave room for two different sums of one round.
    """

    grid: int
    honest_fraction: float
    survivor_fraction: float
    min_cohort: int

    def __post_init__(self) -> None:
        validate.positive_integer(grid=self.grid, min_cohort=self.min_cohort)
        validate.probability(
            honest_fraction=self.honest_fraction, survivor_fraction=self.survivor_fraction
        )
        if not self.min_cohort >= MIN_COHORT:
            msg = f"min_cohort={self.min_cohort!r}, expected at least {MIN_COHORT}."
            raise ConflictingSettings(msg, hint="A sum over one or two clients hides little.")
        if not 2.0 * self.survivor_fraction + self.honest_fraction > 2.0:
            msg = (
                f"honest_fraction={self.honest_fraction!r} and survivor_fraction="
                f"{self.survivor_fraction!r}, expected 2 * survivor_fraction + honest_fraction > 2."
            )
            hint = "Otherwise colluding clients could be led to reveal two sums of one round."
            raise ConflictingSettings(msg, hint=hint)

    @property
    def hidden_share(self) -> float:
        """Return the least share of the noise variance that the server does not know."""
        # Rounded down, so that the last bit of the sum cannot promise more than there is.
        return self.survivor_fraction + self.honest_fraction - 1.0 - _ROUNDING

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> DistributedTerms:
        """Read the stored form.

        Raises:
            SchemaMismatch: for other fields.
        """
        return cls(**stored_fields(cls, value))
