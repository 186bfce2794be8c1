"""Noise that changes over the rounds of a run, fixed before the first one.

A schedule is part of the plan and depends on nothing but the number of a round, so the rounds are
releases of known, different noise: epsilon is that of their composition, whatever their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from shared.errors import InvalidValue
from shared.privacy.events import (
    ComposedEvent,
    GaussianEvent,
    NonPrivateEvent,
    PrivacyEvent,
    SkellamEvent,
)
from shared.privacy.stored import stored_fields

LEVELS = 8
"""Most different noise multipliers of a run: each costs the accountant a distribution."""
SMALLEST_FINAL, LARGEST_FINAL = 0.1, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSchedule:
    """Noise multipliers that go in at most eight equal stairs from z to ``final * z``.

    Attributes:
        form: ``"linear"``: stairs of equal height.
        final: noise of the last rounds over that of the first, from 0.1 to 10.

    Raises:
        InvalidValue: for another form, or a ratio out of range.
    """

    form: Literal["linear"] = "linear"
    final: float

    def __post_init__(self) -> None:
        if self.form != "linear":
            msg = f"form={self.form!r}, expected 'linear'."
            raise InvalidValue(msg)
        number = isinstance(self.final, float) and not isinstance(self.final, bool)
        if not (number and SMALLEST_FINAL <= self.final <= LARGEST_FINAL):
            msg = f"noise_final={self.final!r}, expected {SMALLEST_FINAL:g} to {LARGEST_FINAL:g}."
            raise InvalidValue(msg)

    def factor(self, server_round: int, *, rounds: int) -> float:
        """Return a round's noise multiplier over that of the first round.

        A round after the last has the noise of the last.

        Args:
            server_round: from 1.
            rounds: planned rounds; of n rounds, ``min(n, 8)`` stairs are of one length up to one.

        Raises:
            InvalidValue: for a round below 1.
        """
        if not server_round >= 1:
            msg = f"server_round={server_round!r}, expected 1 or more."
            raise InvalidValue(msg)
        stairs = min(rounds, LEVELS)
        if stairs == 1:
            return 1.0
        stair = (min(server_round, rounds) - 1) * stairs // rounds
        return 1.0 + (self.final - 1.0) * (stair / (stairs - 1))

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> NoiseSchedule:
        """Read the stored form.

        Raises:
            SchemaMismatch: for other fields.
        """
        return cls(**stored_fields(cls, value))


def releases_of(noises: Iterable[float], *, probability: float, each: int) -> PrivacyEvent:
    """Return Gaussian releases of different noise, merged where the noise is the same.

    Args:
        noises: the noise multiplier of each round.
        probability: of Poisson sampling, of every release.
        each: releases in a round.
    """
    events = [
        GaussianEvent(noise_multiplier=noise, sampling_probability=probability, count=rounds * each)
        for noise, rounds in sorted(Counter(noises).items())
    ]
    return events[0] if len(events) == 1 else ComposedEvent(events=tuple(events))


def equal_releases(
    noise_multiplier: float | None, count: int, *, probability: float, grid: int | None
) -> PrivacyEvent:
    """Return releases of one noise.

    Args:
        noise_multiplier: of each; None is no noise at all.
        count: how many.
        probability: of Poisson sampling.
        grid: steps of the clip, for Skellam noise; None is Gaussian noise.
    """
    if noise_multiplier is None:
        return NonPrivateEvent()
    if grid is not None:
        return SkellamEvent(
            noise_multiplier=noise_multiplier,
            grid=grid,
            sampling_probability=probability,
            count=count,
        )
    return GaussianEvent(
        noise_multiplier=noise_multiplier, sampling_probability=probability, count=count
    )
