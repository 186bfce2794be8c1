"""Runs of known noise, clips and cohorts: made by numpy alone, or by the real aggregators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import special, stats

from server.aggregation import make_aggregator
from server.audit.protocol import Claim, Floats, Terms
from server.audit.runrecord import Releases, RoundRecord, RunRecord
from server.cohort import cyclic_cohort, sample_cohort
from shared.lora import Vector
from shared.privacy.correlated import CorrelatedNoise, CorrelatedTerms
from shared.privacy.distributed import to_signed
from shared.privacy.events import NeighboringRelation, PrivacyUnit
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.noiserows import NoiseRows
from shared.privacy.plan import PrivacyPlan
from shared.privacy.quantile import QuantileClipping
from shared.privacy.terms import DistributedTerms

CLIP = 0.5
GAUSSIAN = PrivacyPlan(
    mode="client-central",
    unit=PrivacyUnit.CLIENT,
    neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    delta=1e-5,
    noise_multiplier=1.2,
    clipping_norm=CLIP,
    max_grad_norm=None,
    sampling_probability=0.25,
    releases_per_round=1,
    rounds=12,
    max_participations=None,
    population=40,
    dataset_size=None,
    noise_source="seeded-simulation",
    cap=1000.0,
)
QUANTILE = replace(
    GAUSSIAN,
    quantile=QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=2.0, initial=CLIP),
)
CORRELATED = replace(
    GAUSSIAN,
    noise="correlated",
    sampling_probability=1.0,
    correlated=CorrelatedTerms(bands=4, min_separation=4, rounds=12),
)
DISTRIBUTED = replace(
    GAUSSIAN,
    mode="client-distributed",
    noise="skellam",
    distributed=DistributedTerms(
        grid=1024, honest_fraction=0.9, survivor_fraction=0.8, min_cohort=4
    ),
)
COARSE = replace(
    DISTRIBUTED,
    distributed=DistributedTerms(grid=2, honest_fraction=0.9, survivor_fraction=0.8, min_cohort=4),
)
NONE = PrivacyPlan(
    mode="none",
    unit=None,
    neighboring_relation=None,
    delta=None,
    noise_multiplier=None,
    clipping_norm=None,
    max_grad_norm=None,
    sampling_probability=1.0,
    releases_per_round=1,
    rounds=12,
    max_participations=None,
    population=40,
    dataset_size=None,
    noise_source="os-entropy",
    cap=None,
)
EXAMPLE = replace(
    GAUSSIAN, mode="example", unit=PrivacyUnit.EXAMPLE, clipping_norm=None, max_grad_norm=0.5
)
FORMS = {
    "gaussian": GAUSSIAN,
    "quantile": QUANTILE,
    "correlated": CORRELATED,
    "distributed": DISTRIBUTED,
}

Updates = Callable[[int, Sequence[int]], Sequence[Vector]]
"""The updates of a round, by its number and its cohort."""


def square_root(rounds: int, bands: int) -> Floats:
    """Build the banded square root of prefix sums from exact binomials."""
    c = np.zeros((rounds, rounds))
    for k in range(min(bands, rounds)):
        c += special.comb(2 * k, k, exact=True) / 4**k * np.eye(rounds, k=-k)
    return c


def pure_noise(plan: PrivacyPlan, rng: np.random.Generator, *, rounds: int, width: int) -> Floats:
    """Draw what a plan's releases are when nobody has anything to say; no code of ours."""
    z, clip = plan.noise_multiplier or math.nan, plan.clipping_norm or math.nan
    if plan.correlated is not None:
        terms = plan.correlated
        column = square_root(terms.rounds, terms.bands)
        starts = range(0, terms.rounds, terms.min_separation)
        moved = column[:, list(starts)].sum(axis=1)
        row = z * clip * float(np.linalg.norm(moved))
        whole = np.linalg.solve(column, rng.normal(0.0, row, size=(terms.rounds, width)))
        return np.asarray(whole[:rounds] / math.ceil(plan.population / terms.min_separation))
    cohort = plan.sampling_probability * plan.population
    if plan.distributed is not None:
        grid = plan.distributed.grid
        half = (z * grid) ** 2 / 2.0
        drawn = stats.skellam.rvs(half, half, size=(rounds, width), random_state=rng)
        return np.asarray(drawn * clip / grid / cohort, dtype=np.float64)
    if plan.quantile is not None:
        z = (z**-2 - (2 * plan.quantile.count_noise_stddev) ** -2) ** -0.5
    return rng.normal(0.0, z * clip / cohort, size=(rounds, width))


def record(
    plan: PrivacyPlan,
    values: Floats,
    *,
    cohorts: Sequence[int] | None = None,
    seed: int = 0,
    clips: Sequence[float | None] | None = None,
) -> RunRecord:
    """Return a finished run with these releases, whose adapter is their sum."""
    rounds, width = values.shape
    if cohorts is None:
        rng = np.random.default_rng([77, seed])
        drawn = np.atleast_1d(rng.binomial(plan.population, plan.sampling_probability, rounds))
        cohorts = [int(size) for size in drawn]
    initial = np.zeros(width, dtype=np.float32)
    stored = values.astype(np.float32).astype(np.float64)
    released = initial
    for row in stored:
        released = (released.astype(np.float64) + row).astype(np.float32)
    clips = [plan.clipping_norm] * rounds if clips is None else clips
    return RunRecord(
        plan=plan,
        population=plan.population,
        rounds=tuple(
            RoundRecord(
                server_round=number + 1,
                cohort=int(cohorts[number]),
                answered=int(cohorts[number]),
                aborted=False,
                clipping_norm=clips[number],
            )
            for number in range(rounds)
        ),
        initial=initial,
        released=released,
        releases=Releases(rounds=tuple(range(1, rounds + 1)), values=stored),
        replayed=released.copy(),
    )


def small_updates(seed: int, width: int, *, length: float = 0.8 * CLIP) -> Updates:
    """Return updates of clients that pull one way, each with its own part."""
    rng = np.random.default_rng([5, seed])
    common = rng.standard_normal(width)
    common /= np.linalg.norm(common)

    def make(server_round: int, cohort: Sequence[int]) -> list[Vector]:
        made = []
        for client in cohort:
            own = np.random.default_rng([6, seed, server_round, client]).standard_normal(width)
            update = 0.3 * common + 0.95 * own / np.linalg.norm(own)
            made.append((length * update).astype(np.float32))
        return made

    return make


def run_mechanism(plan: PrivacyPlan, seed: int, *, width: int, updates: Updates) -> RunRecord:
    """Run all rounds of a plan through the real cohorts, aggregators and shares."""
    rows = None
    if plan.correlated is not None:
        rows = CorrelatedNoise(plan.correlated, dimension=width, rows=NoiseRows.seeded(seed))
    clip = None if plan.quantile is None else plan.quantile.initial
    released, cohorts, clips = [], [], []
    for number in range(1, plan.rounds + 1):
        source = NoiseSource.seeded(seed, "noise", number)
        cohort = _cohort(plan, seed, number)
        clips.append(plan.clipping_norm if clip is None else clip)
        cohorts.append(len(cohort))
        given = updates(number, cohort)
        if plan.distributed is not None:
            released.append(_secure(plan, seed, number, given, width))
            continue
        aggregator = make_aggregator(
            width, plan=plan, source=source, server_round=number, clip=clip, noise=rows
        )
        for update in given:
            aggregator.add(update)
        found = aggregator.release()
        assert found is not None
        clip = found.next_clip
        released.append(found.vector)
    return record(plan, np.stack(released), cohorts=cohorts, clips=clips)


def _cohort(plan: PrivacyPlan, seed: int, number: int) -> list[int]:
    """Draw the cohort of a round as a run does."""
    if plan.correlated is not None:
        return cyclic_cohort(plan.population, plan.correlated.min_separation, number, seed)
    source = NoiseSource.seeded(seed, "cohort", number)
    return sample_cohort(plan.population, plan.sampling_probability, source)


def _secure(
    plan: PrivacyPlan, seed: int, number: int, updates: Sequence[Vector], width: int
) -> Floats:
    """Add up shares of a filled-up cohort, of which nobody drops out."""
    assert plan.distributed is not None
    mechanism = plan.distributed_mechanism
    zero = np.zeros(width, dtype=np.float32)
    filled = [*updates, *([zero] * max(0, plan.distributed.min_cohort - len(updates)))]
    total = np.zeros(width, dtype=np.uint32)
    for client, update in enumerate(filled):
        clipped = clip_update(AdapterDelta(vector=update), clipping_norm=mechanism.clipping_norm)
        source = NoiseSource.seeded(seed, "share", number, client)
        total += mechanism.share(clipped, cohort=len(filled), source=source).words
    assert np.abs(to_signed(total)).max() < 2**31
    mean = mechanism.release(
        total,
        cohort=len(filled),
        survivors=len(filled),
        expected_count=plan.expected_cohort,
        source=NoiseSource.seeded(seed, "top-up", number),
    )
    return mean.vector.astype(np.float64)


def terms(plan: PrivacyPlan, *, seed: int = 3) -> Terms:
    """Return the terms of a conclusion about a plan."""
    private = plan.mode != "none"
    return Terms(
        claim=Claim(
            mode=plan.mode,
            epsilon=8.0 if private else None,
            delta=plan.delta,
            unit=str(plan.unit) if private else None,
            neighboring_relation=str(plan.neighboring_relation) if private else None,
        ),
        seed=seed,
    )
