"""The noise that a plan declares, worked out from the plan's numbers alone.

An auditor who asked the mechanism how much noise it adds would believe a broken one. Nothing here
calls the code that runs; formulas are written out again from the papers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from server.audit.protocol import Floats
from shared.errors import AuditError
from shared.privacy.plan import PrivacyPlan

_BEYOND = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredNoise:
    """What the rounds of a client mode add to the mean, per coordinate.

    Args:
        over_clip: standard deviation of the *new* noise of a round on the sum, divided by the clip.
            With independent noise that is all of it; with correlated noise it is what the round
            adds to the rows of earlier rounds.
        divisor: the public number that the sum is divided by.
        coefficients: first column of the matrix C of correlated noise, ``(1,)`` if independent.
            Row t of C times the releases has the round's new noise and no other.
        kurtosis: excess kurtosis of the noise: 0 for Gaussian, ``1 / V`` for Skellam noise of
            variance V on the integer grid.
        variance: V, for Skellam noise; None for Gaussian.
    """

    over_clip: float
    divisor: float
    coefficients: tuple[float, ...] = (1.0,)
    kurtosis: float = 0.0
    variance: float | None = None

    @property
    def correlated(self) -> bool:
        """Whether later rounds take back a part of earlier noise."""
        return len(self.coefficients) > 1

    def whitened(self, rows: Floats) -> Floats:
        """Return rows 1 to T times C, which undoes the correlation.

        Args:
            rows: shape ``(T, m)``, the first T rounds without a gap.
        """
        if not self.correlated:
            return rows
        white = np.zeros_like(rows)
        for back, weight in enumerate(self.coefficients[: rows.shape[0]]):
            white[back:] += weight * rows[: rows.shape[0] - back]
        return white


def declared_noise(plan: PrivacyPlan) -> DeclaredNoise | None:
    """Return what a plan declares; None where no noise is added to the mean of the clients.

    References:
        Andrew et al. 2021, arXiv:1905.03871, Theorem 1 (the part of the noise that is left for the
        update); Kalinin & Lampert 2024, arXiv:2405.13763, Theorem 2 (sensitivity of banded square
        roots); Agarwal, Kairouz & Liu 2021, arXiv:2110.04995 (Skellam noise).
    """
    z = plan.noise_multiplier
    if plan.mode not in {"client-central", "client-distributed"} or z is None:
        return None
    if plan.correlated is not None:
        terms = plan.correlated
        column = _square_root(min(terms.bands, terms.rounds))
        moved = np.zeros(terms.rounds, dtype=np.float64)
        for start in range(0, terms.rounds, terms.min_separation):
            moved[start : start + column.size] += column[: terms.rounds - start]
        return DeclaredNoise(
            over_clip=z * math.sqrt(float(moved @ moved)),
            divisor=float(-(-plan.population // terms.min_separation)),
            coefficients=tuple(float(value) for value in column),
        )
    divisor = plan.sampling_probability * plan.population
    if plan.distributed is not None:
        variance = (z * plan.distributed.grid) ** 2
        return DeclaredNoise(
            over_clip=z, divisor=divisor, kurtosis=1.0 / variance, variance=variance
        )
    if plan.quantile is not None:
        of_count = 1.0 / (2.0 * plan.quantile.count_noise_stddev) ** 2
        return DeclaredNoise(over_clip=(1.0 / z**2 - of_count) ** -0.5, divisor=divisor)
    return DeclaredNoise(over_clip=z, divisor=divisor)


def most_answers(plan: PrivacyPlan, population: int) -> float:
    """Return a public number of updates that a round exceeds with a chance below 1e-9.

    The real numbers are not used, because nothing pays for publishing them.

    Args:
        plan: a plan of a client mode.
        population: clients that could be sampled.
    """
    if plan.correlated is not None:
        return float(-(-population // plan.correlated.min_separation))
    q = plan.sampling_probability
    low, most = 0, population
    while q < 1 and most - low > 1:
        middle = (low + most) // 2
        beyond = float(special.bdtrc(middle, population, q)) > _BEYOND
        low, most = (middle, most) if beyond else (low, middle)
    if plan.distributed is not None:
        # Small cohorts are filled up, with empty updates.
        most = max(most, plan.distributed.min_cohort)
    return float(most)


def clips_in_force(plan: PrivacyPlan, said: Sequence[float | None]) -> Floats:
    """Return the clip of each round: the plan's, or under quantile clipping what the round said.

    Raises:
        AuditError: if a round under quantile clipping did not say.
    """
    if plan.quantile is None:
        if plan.clipping_norm is None:
            msg = f"mode={plan.mode!r} has no clip."
            raise AuditError(msg)
        return np.full(len(said), plan.clipping_norm, dtype=np.float64)
    known = [clip for clip in said if clip is not None]
    if len(known) != len(said):
        msg = f"{len(said) - len(known)} rounds do not say the clip in force."
        raise AuditError(msg, hint="metrics.jsonl names it in every round.")
    return np.array(known, dtype=np.float64)


def noise_factors(plan: PrivacyPlan, rounds: Sequence[int]) -> Floats:
    """Return the declared noise of some rounds over that of the first."""
    if plan.schedule is None:
        return np.ones(len(rounds), dtype=np.float64)
    stairs = min(plan.rounds, 8)
    numbers = np.minimum(np.asarray(rounds, dtype=np.int64), plan.rounds)
    stair = (numbers - 1) * stairs // plan.rounds
    return 1.0 + (plan.schedule.final - 1.0) * stair / max(stairs - 1, 1)


def _square_root(size: int) -> Floats:
    """Return the first entries of the square root of prefix sums, ``binom(2k, k) / 4**k``."""
    column = np.ones(size, dtype=np.float64)
    for k in range(1, size):
        column[k] = column[k - 1] * (1.0 - 0.5 / k)
    return column
