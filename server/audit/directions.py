"""Canary clients with a fixed direction each, and how far releases lean towards them.

A canary client answers every round that it is asked in with the same vector, far longer than the
clip, in a direction drawn from the run's seed. After clipping it adds exactly the clip in that
direction, so how far the releases lean towards it, against the noise, is known beforehand: too far
means too little noise, or too much weight. Only released sums are needed, so it works under secure
aggregation too (Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning",
2024).

Rounds with correlated noise are multiplied by the factor C of the factorisation first, which makes
their noise independent again (see :mod:`shared.privacy.correlated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.audit.protocol import Floats
from server.cohort import cyclic_cohort
from shared import validate
from shared.errors import AuditError
from shared.privacy.plan import PrivacyPlan
from shared.seeding import data_rng

Integers: TypeAlias = NDArray[np.int64]
Directions: TypeAlias = Callable[[int], Floats]
SEEN = "client-canary"
UNSEEN = "client-canary-unseen"


def unit_direction(seed: int, index: int, dimension: int, *, stream: str = SEEN) -> Floats:
    """Return a direction drawn uniformly from the sphere.

    Args:
        seed: public, the run's.
        index: which canary, from 0.
        dimension: d >= 1, the trained parameters that are aggregated (B alone under ffa).
        stream: :data:`SEEN`, or :data:`UNSEEN` for directions that no client ever sent.

    Returns:
        Shape ``(d,)``, L2 norm 1.
    """
    validate.positive_integer(dimension=dimension)
    found = data_rng(seed, stream, index).standard_normal(dimension)
    return np.asarray(found / np.linalg.norm(found), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCanaries:
    """Clients that own no text and answer every round in one fixed random direction each.

    They are the last ``count`` clients of the population. Nothing of their directions is stored:
    each is drawn again from the seed when it is needed.

    Args:
        count: k >= 1.
        seed: the run's seed.
    """

    count: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a count that is no number of clients.

        Raises:
            InvalidValue: if it is not an integer >= 1.
        """
        validate.positive_integer(count=self.count)

    def direction(self, index: int, dimension: int) -> Floats:
        """Return the direction of one canary, shape ``(dimension,)``, norm 1."""
        return unit_direction(self.seed, index, dimension)

    def unseen(self, index: int, dimension: int) -> Floats:
        """Return a direction of the same kind that no client sent, for comparison."""
        return unit_direction(self.seed, index, dimension, stream=UNSEEN)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """When canaries take part and what the planned noise makes of it.

    Every array is about rounds whose noise is independent: rounds as released, or, under correlated
    noise, after decoding.

    Attributes:
        coefficients: first column of C, shape ``(p,)``; ``[1]`` where rounds are independent.
        weights: how the rounds are added up for each group of canaries that take part together,
            shape ``(groups, rounds)``, rows of norm 1.
        group: which group each canary is in, shape ``(k,)``.
        signal: expected contribution of a canary to each round, in clips, shape like ``weights``.
        power: expected square of it; differs from ``signal**2`` where a coin decides.
        noise_multiplier: planned noise on each coordinate of a round's sum, in clips; None in mode
            none.
    """

    coefficients: Floats
    weights: Floats
    group: Integers
    signal: Floats
    power: Floats
    noise_multiplier: float | None

    def predicted(self, dimension: int) -> float | None:
        """Return the mean score that the plan predicts; None without planned noise.

        The canaries themselves make a round's sum longer than its noise; that is divided out.
        """
        noise = self.noise_multiplier
        if noise is None:
            return None
        members = np.bincount(self.group, minlength=self.weights.shape[0])
        own = members @ self.power / (noise**2 * dimension)
        leaning = (self.weights * self.signal / np.sqrt(1.0 + own)).sum(axis=1) / noise
        return float(members @ leaning / self.group.size)

    @property
    def sampling_variance(self) -> float:
        """Return the variance of a canary's score that comes from its own coins alone."""
        if self.noise_multiplier is None:
            return 0.0
        members = np.bincount(self.group, minlength=self.weights.shape[0])
        spread = (self.weights**2 * (self.power - self.signal**2)).sum(axis=1)
        return float(members @ spread / self.group.size / self.noise_multiplier**2)


def sampled_schedule(
    *, rounds: int, canaries: int, probability: float, noise_multiplier: float | None
) -> Schedule:
    """Return the schedule of canaries that take part by a coin of their own in each round."""
    ones = np.ones((1, rounds))
    return Schedule(
        coefficients=np.ones(1),
        weights=ones / math.sqrt(rounds),
        group=np.zeros(canaries, dtype=np.int64),
        signal=probability * ones,
        power=probability * ones,
        noise_multiplier=noise_multiplier,
    )


def cyclic_schedule(plan: PrivacyPlan, turns: NDArray[np.bool_]) -> Schedule:
    """Return the schedule of canaries that take turns under correlated noise.

    Args:
        plan: with correlated noise.
        turns: which canary takes part in which round, shape ``(k, rounds)``.

    Raises:
        AuditError: if a canary never takes part.
    """
    terms = plan.correlated
    if terms is None or plan.noise_multiplier is None:
        msg = f"noise={plan.noise!r}, expected correlated noise."
        raise AuditError(msg)
    patterns, group = np.unique(turns, axis=0, return_inverse=True)
    signal = decoded(patterns.T.astype(np.float64), terms.coefficients).T
    lengths = np.linalg.norm(signal, axis=1, keepdims=True)
    if not (lengths > 0).all():
        msg = "a canary client never takes part in this run, expected every one to."
        raise AuditError(msg, hint="Run at least as many rounds as there are cyclic cohorts.")
    return Schedule(
        coefficients=terms.coefficients,
        weights=signal / lengths,
        group=np.asarray(group, dtype=np.int64).reshape(-1),
        signal=signal,
        power=signal**2,
        noise_multiplier=plan.noise_multiplier * terms.sensitivity,
    )


def schedule_of(
    plan: PrivacyPlan, canaries: ClientCanaries, *, population: int, rounds: tuple[int, ...]
) -> Schedule:
    """Return the schedule of a run's own canaries in the rounds that released something.

    Raises:
        AuditError: if rounds of a run with correlated noise are missing: its noise can then not be
            decoded.
    """
    if plan.correlated is None:
        return sampled_schedule(
            rounds=len(rounds),
            canaries=canaries.count,
            probability=plan.sampling_probability,
            noise_multiplier=update_noise(plan),
        )
    if rounds != tuple(range(1, len(rounds) + 1)):
        msg = f"{len(rounds)} rounds up to {rounds[-1]}, expected all of them: noise is correlated."
        raise AuditError(msg)
    turns = np.zeros((canaries.count, len(rounds)), dtype=np.bool_)
    first = population - canaries.count
    for column, number in enumerate(rounds):
        cohort = cyclic_cohort(population, plan.correlated.min_separation, number, canaries.seed)
        present = np.array([client - first for client in cohort if client >= first], dtype=np.int64)
        turns[present, column] = True
    return cyclic_schedule(plan, turns)


def update_noise(plan: PrivacyPlan) -> float | None:
    """Return the planned noise on each coordinate of a round's sum, in clips.

    None where nobody adds noise to a sum of updates. Quantile clipping spends a part of its noise
    on the count, so the update's is larger than the plan's.
    """
    if plan.mode not in {"client-central", "client-distributed"} or plan.noise_multiplier is None:
        return None
    if plan.quantile is not None:
        return plan.quantile.split(plan.noise_multiplier)
    return plan.noise_multiplier


def decoded(rounds: Floats, coefficients: Floats) -> Floats:
    """Multiply rounds by the banded Toeplitz matrix C; the rounds themselves for ``[1]``.

    Args:
        rounds: shape ``(rounds, m)``.
        coefficients: first column of C, shape ``(p,)``.
    """
    if coefficients.size == 1:
        return rounds
    found: Floats = coefficients[0] * rounds
    for lag in range(1, min(coefficients.size, rounds.shape[0])):
        found[lag:] += coefficients[lag] * rounds[:-lag]
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lean:
    """How far releases lean towards the directions of canaries.

    Attributes:
        cosines: of the angle between each direction and the weighted sum of the rounds, ``(k,)``.
        scores: the same with every round scaled to the length 1 before it is added, and multiplied
            so that noise alone has variance ``spread / share``, shape ``(k,)``. What clients learn
            adds up over the rounds and hides canaries in the sum; in single rounds it does so far
            less.
        spread: mean squared length of the scaled sum: 1 for independent noise, more where rounds
            lean in one direction together.
        lengths: root mean square of a coordinate of each round, in clips, shape ``(rounds,)``.
        share: part of the coordinates that were kept.
    """

    cosines: Floats
    scores: Floats
    spread: float
    lengths: Floats
    share: float


def lean(
    values: Floats,
    *,
    clips: Floats,
    schedule: Schedule,
    directions: Directions,
    dimension: int,
    coordinates: NDArray[np.int64] | None = None,
) -> Lean:
    """Measure how far releases lean towards the directions of canaries.

    Args:
        values: the releases, shape ``(rounds, m)``.
        clips: clip of each round, > 0, shape ``(rounds,)``.
        schedule: when canaries take part.
        directions: one direction at a time, in the order of the canaries.
        dimension: d, the trained parameters.
        coordinates: which ones were kept; None for all.
    """
    kept = values.shape[1]
    share = kept / dimension
    rounds = decoded(values / clips[:, None], schedule.coefficients)
    lengths = np.linalg.norm(rounds, axis=1)
    weights = schedule.weights
    totals = weights @ rounds
    headings = (weights * _inverse(lengths)) @ rounds
    sizes = _inverse(np.linalg.norm(totals, axis=1))
    # One product for both: rows of totals and headings of every group.
    both = np.vstack([totals * sizes[:, None], headings])
    groups = weights.shape[0]
    cosines, scores = np.zeros(schedule.group.size), np.zeros(schedule.group.size)
    for index, group in enumerate(schedule.group):
        direction = directions(index)
        inside = direction if coordinates is None else direction[coordinates]
        cosines[index] = inside @ both[group] / np.linalg.norm(inside)
        scores[index] = inside @ both[groups + group] * math.sqrt(kept) / share
    members = np.bincount(schedule.group, minlength=groups)
    spread = float(members @ np.square(np.linalg.norm(headings, axis=1)) / schedule.group.size)
    return Lean(
        cosines=cosines,
        scores=scores,
        spread=spread,
        lengths=lengths / math.sqrt(kept),
        share=share,
    )


def _inverse(lengths: Floats) -> Floats:
    """Return ``1 / length``, and 0 for a release of zeros."""
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
