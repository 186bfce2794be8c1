"""Votes: clients say, under noise, whether the adapter got better on their own held-out records.

In a round with a vote every client of the cohort says +1 (better), -1 (not better) or 0 (it holds
nothing out). The server releases the sum of these numbers with Gaussian noise, beside the mean
update of the same round.

Guarantee:
    Whatever a client's records are, its vote has magnitude at most 1. Update and vote are read off
    one Poisson sample. Given the sample, a client moves the update by at most C under noise of
    ``z C``, and the vote by at most 1 under noise of ``z_v``: divided by the noise, a vector of
    squared norm at most ``1/z**2 + 1/z_v**2`` under independent standard normal noise. So the two
    are exactly one subsampled Gaussian release of multiplier ``(z**-2 + z_v**-2)**-0.5``, also
    where one is computed after the other, and that is what the round is charged. Under replace-one
    both parts double together. When the run stops is post-processing of what was released.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final

from shared import validate
from shared.errors import SensitivityError
from shared.privacy.noise import NoiseSource
from shared.privacy.stored import stored_fields

LARGEST_VOTE: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteTerms:
    """In which rounds clients vote, and under which noise.

    Attributes:
        every: rounds from one vote to the next, >= 1. The cohort of round ``every + 1`` is the
            first to vote: it judges the adapter that the first ``every`` rounds released.
        noise_multiplier: z_v > 0, noise standard deviation of the sum of votes, in votes.

    Raises:
        InvalidValue: for a value out of range.
    """

    every: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        validate.positive_integer(every=self.every)
        validate.positive(vote_noise_multiplier=self.noise_multiplier)

    def taken(self, server_round: int) -> bool:
        """Tell whether the clients of a round, from 1, vote."""
        return server_round > 1 and (server_round - 1) % self.every == 0

    def among(self, rounds: int) -> int:
        """Return how many of the first rounds have a vote."""
        return max(0, rounds - 1) // self.every

    def joint(self, noise_multiplier: float) -> float:
        """Return the noise multiplier of update and vote released together.

        Args:
            noise_multiplier: z > 0 of the update alone.

        Returns:
            ``(z**-2 + z_v**-2)**-0.5``, below both.
        """
        # z z_v / hypot(z, z_v), without squares that would overflow.
        larger = max(noise_multiplier, self.noise_multiplier)
        smaller = min(noise_multiplier, self.noise_multiplier)
        return smaller / math.hypot(1.0, smaller / larger)

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> VoteTerms:
        """Read the stored form.

        Raises:
            SchemaMismatch: for other fields.
            InvalidValue: for a value out of range.
        """
        return cls(**stored_fields(cls, value))


class VoteSum:
    """The running sum of a round's votes, released once.

    Args:
        terms: the noise.
    """

    __slots__ = ("_released", "_terms", "_total")

    def __init__(self, terms: VoteTerms) -> None:
        self._terms = terms
        self._total = 0
        self._released = False

    def add(self, vote: int) -> None:
        """Add one client's vote; its client must not be added again.

        Raises:
            SensitivityError: if it is not -1, 0 or 1, or the sum was released.
        """
        if self._released or type(vote) is not int or abs(vote) > LARGEST_VOTE:
            msg = "a vote is -1, 0 or 1, and is added before the sum is released."
            raise SensitivityError(msg)
        self._total += vote

    def release(self, *, expected_count: float, source: NoiseSource) -> float:
        """Return the noised sum over the expected cohort; above 0, the adapter got better.

        Args:
            expected_count: public, fixed before sampling.
            source: where the noise comes from.

        Returns:
            ``(sum + N(0, z_v**2)) / expected_count``; noise may put it outside ``[-1, 1]``. An
            empty cohort is released like any other.

        Raises:
            InvalidValue: if ``expected_count`` is not finite and positive.
            SensitivityError: the second time.
        """
        validate.positive(expected_count=expected_count)
        if self._released:
            msg = "the sum of votes was released already."
            raise SensitivityError(msg, hint="A second release would be a second event.")
        self._released = True
        noised = self._total + self._terms.noise_multiplier * float(source.normal(1)[0])
        return noised / expected_count
