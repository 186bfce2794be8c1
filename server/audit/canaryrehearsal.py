"""A rehearsal with canaries: the plan's own mechanism without anybody's data.

The aggregator of the plan, as installed, releases rounds to which virtual canary clients alone
contribute. Without data nothing hides the canaries or the noise, so both a mean that is too high
(too little noise, too much weight) and one that is too low show. The same rehearsal with half of
the noise must be noticed: that is the positive control.

How often virtual canaries take part, and in how many rounds where rounds are independent, is chosen
so that half of the noise can be noticed; the sampling of clients is the matter of another audit. A
rehearsal says something about the mechanism that is installed here, and about a run only as far as
the run used the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.aggregation import make_aggregator
from server.audit.directions import (
    Schedule,
    cyclic_schedule,
    lean,
    sampled_schedule,
    unit_direction,
    update_noise,
)
from server.audit.protocol import Floats
from shared.errors import AuditError
from shared.lora import Vector
from shared.privacy.correlated import CorrelatedNoise
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.noiserows import NoiseRows
from shared.privacy.plan import PrivacyPlan
from shared.seeding import data_rng

LONG = 1e4
"""Length of a canary's update, in clips: it must be clipped."""

CANARIES = 100
_MOST_CANARIES = 1000
_ROUNDS = 32
_ROUNDS_OF_SHARES = 8
_SMALL, _LARGE = 4096, 16_384
_NUMBERS = 4_000_000
_AIM = 2.0
_WANTED = 8.0

Cohorts: TypeAlias = Sequence[NDArray[np.int64]]


def rehearse(plan: PrivacyPlan, *, seed: int, dimension: int) -> dict[str, Any]:
    """Run the mechanism of a plan twice, as planned and with half of its noise.

    Args:
        plan: of mode client-central or client-distributed.
        seed: of directions, cohorts and noise; the same seed gives the same numbers.
        dimension: trained parameters of the run; it is moved into a range that is cheap and large
            enough for the statistics.

    Returns:
        Evidence: how it was set up, and mean and spread of the scores of both runs.

    Raises:
        AuditError: in a mode in which nobody adds noise to a sum of updates.
    """
    # How noise changes over the rounds is the mechanism audit's; canaries need equal rounds.
    plan = replace(plan, schedule=None)
    noise = update_noise(plan)
    if noise is None or plan.noise_multiplier is None:
        msg = f"mode={plan.mode!r}: nobody adds noise to a sum of updates, so none is rehearsed."
        raise AuditError(msg)
    cohorts, schedule = _cast(plan, noise, seed)
    canaries = schedule.group.size
    width = min(max(dimension, _SMALL), _LARGE, max(_SMALL, _NUMBERS // canaries))
    directions = [unit_direction(seed, i, width, stream="rehearsal") for i in range(canaries)]

    def measured(mechanism: PrivacyPlan) -> dict[str, float]:
        values, clips = _perform(mechanism, cohorts, directions, seed)
        found = lean(
            values,
            clips=clips,
            schedule=schedule,
            directions=directions.__getitem__,
            dimension=width,
        )
        return {"mean": round(float(found.scores.mean()), 9), "spread": round(found.spread, 9)}

    return {
        "mechanism": plan.noise,
        "canaries": canaries,
        "dimension": width,
        "rounds": len(cohorts),
        "predicted": schedule.predicted(width),
        "sampling_variance": schedule.sampling_variance,
        "planned": measured(plan),
        "halved": measured(replace(plan, noise_multiplier=plan.noise_multiplier / 2)),
    }


def _cast(plan: PrivacyPlan, noise: float, seed: int) -> tuple[Cohorts, Schedule]:
    """Choose how many virtual canaries there are and when each takes part."""
    if plan.correlated is not None:
        return _cyclic_cast(plan)
    rounds = _ROUNDS if plan.distributed is None else _ROUNDS_OF_SHARES
    probability = min(1.0, _AIM * noise / math.sqrt(rounds))
    canaries = _enough(probability * math.sqrt(rounds) / noise)
    schedule = sampled_schedule(
        rounds=rounds, canaries=canaries, probability=probability, noise_multiplier=noise
    )
    coins = data_rng(seed, "rehearsal-cohorts").random((rounds, canaries)) < probability
    return [np.flatnonzero(row) for row in coins], schedule


def _cyclic_cast(plan: PrivacyPlan) -> tuple[Cohorts, Schedule]:
    """Deal virtual canaries to the turns of correlated noise, which fix who takes part when."""
    terms = plan.correlated
    if terms is None or plan.noise_multiplier is None:
        msg = f"noise={plan.noise!r}, expected correlated noise."
        raise AuditError(msg)
    groups = min(terms.min_separation, terms.rounds)
    canaries = _enough(1.0 / plan.noise_multiplier)
    turns = np.zeros((canaries, terms.rounds), dtype=np.bool_)
    for number in range(terms.rounds):
        turn = number % terms.min_separation
        if turn < groups:
            turns[turn::groups, number] = True
    return [np.flatnonzero(column) for column in turns.T], cyclic_schedule(plan, turns)


def _enough(predicted: float) -> int:
    """Return how many canaries are needed to see a score of this size well."""
    return int(min(max(CANARIES, (_WANTED / predicted) ** 2), _MOST_CANARIES))


def _perform(
    plan: PrivacyPlan, cohorts: Cohorts, directions: Sequence[Floats], seed: int
) -> tuple[Floats, Floats]:
    """Release every round; return releases and the clip that was in force, round by round."""
    width = directions[0].size
    values, clips = np.zeros((len(cohorts), width)), np.zeros(len(cohorts))
    rows = None
    if plan.correlated is not None:
        rows = CorrelatedNoise(plan.correlated, dimension=width, rows=NoiseRows.seeded(seed))
    clip = plan.clipping_norm or 0.0
    for index, cohort in enumerate(cohorts):
        clips[index] = clip
        source = NoiseSource.seeded(seed, "rehearsal-noise", index)
        updates = [np.asarray(LONG * clip * directions[i], dtype=np.float32) for i in cohort]
        if plan.distributed is not None:
            values[index] = _shares(plan, updates, width, source)
            continue
        aggregator = make_aggregator(
            width, plan=plan, source=source, server_round=index + 1, clip=clip, noise=rows
        )
        for update in updates:
            aggregator.add(update)
        aggregate = aggregator.release()
        if aggregate is None:
            msg = "the mechanism released nothing, expected noise at least."
            raise AuditError(msg)
        values[index] = aggregate.vector
        clip = clip if aggregate.next_clip is None else aggregate.next_clip
    return values, clips


def _shares(
    plan: PrivacyPlan, updates: Sequence[Vector], width: int, source: NoiseSource
) -> Vector:
    """Release one round of distributed noise, without masks: shares, missing clients, top-up."""
    mechanism, terms = plan.distributed_mechanism, plan.distributed
    if terms is None:
        msg = "a plan without distributed noise, expected shares of noise."
        raise AuditError(msg)
    empty = np.zeros(width, dtype=np.float32)
    taking_part = [*updates, *[empty] * (terms.min_cohort - len(updates))]
    survivors = len(taking_part)
    announced = max(survivors, math.floor(survivors / terms.survivor_fraction))
    total = np.zeros(width, dtype=np.uint32)
    for number, update in enumerate(taking_part):
        delta = clip_update(AdapterDelta(vector=update), clipping_norm=mechanism.clipping_norm)
        share = mechanism.share(delta, cohort=announced, source=source.spawn("share", number))
        total += share.words
    mean = mechanism.release(
        total,
        cohort=announced,
        survivors=survivors,
        expected_count=plan.expected_cohort,
        source=source.spawn("top-up"),
    )
    return mean.vector
