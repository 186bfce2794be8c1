"""Made-up runs with canary clients, released by numpy alone, and their plans."""

from __future__ import annotations

import math

import numpy as np

from server.audit.directions import ClientCanaries
from server.audit.protocol import Floats
from server.audit.runrecord import Releases, RoundRecord, RunRecord
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan

CLIP = 0.7
REAL = 900


def plan_of_run(
    *, probability: float = 0.1, noise: float = 1.0, rounds: int = 100, canaries: int = 100
) -> PrivacyPlan:
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-5,
        noise_multiplier=noise,
        clipping_norm=CLIP,
        sampling_probability=probability,
        rounds=rounds,
        population=REAL + canaries,
    )


def released_run(
    plan: PrivacyPlan,
    *,
    canaries: int = 100,
    dimension: int = 4000,
    seed: int = 0,
    noise: float | None = None,
    weight: float = 1.0,
    drift: float = 0.0,
    kept: int | None = None,
) -> tuple[RunRecord, ClientCanaries]:
    """Release clipped canaries in Gaussian noise.

    Args:
        plan: what was planned.
        canaries: how many.
        dimension: trained parameters.
        seed: of everything.
        noise: the noise multiplier that ran; the planned one by default.
        weight: clips that each canary adds.
        drift: length of what the other clients add to each round, in planned noise lengths over
            the square root of the rounds: 1 makes the sum of all rounds as long as its noise.
        kept: how many coordinates are recorded.
    """
    rng = np.random.default_rng(seed)
    planted = ClientCanaries(count=canaries, seed=seed)
    rounds, planned = plan.rounds, float(plan.noise_multiplier or 0.0)
    directions = np.array([planted.direction(i, dimension) for i in range(canaries)])
    present = rng.random((rounds, canaries)) < plan.sampling_probability
    values = weight * present.astype(np.float64) @ directions
    values += (planned if noise is None else noise) * rng.standard_normal((rounds, dimension))
    learned = rng.standard_normal(dimension)
    values += drift * planned * learned / math.sqrt(rounds)
    values *= CLIP / plan.expected_cohort
    total: Floats = values.sum(axis=0)
    coordinates = None
    if kept is not None:
        coordinates = np.sort(rng.choice(dimension, kept, replace=False)).astype(np.int64)
        values = values[:, coordinates]
    record = RunRecord(
        plan=plan,
        population=plan.population,
        rounds=tuple(
            RoundRecord(
                server_round=number,
                cohort=10,
                answered=10,
                aborted=False,
                clipping_norm=CLIP,
            )
            for number in range(1, rounds + 1)
        ),
        initial=np.zeros(dimension, dtype=np.float32),
        released=total.astype(np.float32),
        releases=Releases(
            rounds=tuple(range(1, rounds + 1)), values=values, coordinates=coordinates
        ),
    )
    return record, planted
