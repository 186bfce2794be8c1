"""From updates to one released mean, streaming: memory does not grow with the cohort.

Weights are uniform. Client-reported counts are neither asked for nor used: an average weighted by
them has a sensitivity that no noise was calibrated for.

Two mechanisms of ``client-central`` remember something from round to round, which the round loop
keeps for them::

    noise = correlated_noise(size, plan=plan, folder=folder, seed=seed, finished=finished)
    clip = checkpoint.clip if resumed else None                 # quantile clipping
    for server_round in range(finished + 1, rounds + 1):
        clip_of_round = clip if clip is not None else plan.clipping_norm   # goes to the clients
        aggregator = make_aggregator(
            size, plan=plan, source=source, server_round=server_round, clip=clip, noise=noise
        )
        aggregate = aggregator.release()
        clip = aggregate.next_clip                              # None without quantile clipping
        write_checkpoint(folder, Checkpoint(..., clip=clip))    # before anything leaves
    forget_rows(folder)                                         # correlated noise: delete the key
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.robust import BoundedRows, RobustRule
from shared.errors import ConflictingSettings, SchemaMismatch
from shared.lora import Vector
from shared.privacy.correlated import CorrelatedGaussian, CorrelatedNoise
from shared.privacy.mechanism import AdapterDelta, ClippedSum
from shared.privacy.noise import SEEDED, NoiseSource
from shared.privacy.noiserows import NoiseRows
from shared.privacy.norms import add_scaled, norm_of
from shared.privacy.plan import PrivacyPlan
from shared.privacy.quantile import QuantileGaussian, QuantileSum
from shared.residual import Residual
from shared.wire import Stage

STAGE_OF_MODE: dict[str, Stage] = {
    "none": "plain",
    "example": "noised",
    "client-central": "clipped",
}


LONGEST_UPDATE = 1e6
"""L2 norm that no update of use has; longer ones are scaled down where the plan has no clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What a round releases to the server optimizer.

    Attributes:
        vector: the mean update, float64.
        count: updates that went in; known to the server, not released.
        next_clip: the clip of the next round, released with the mean; None where it is fixed.
        shortened: updates that were longer than the bound on their norm; None where a clip bounds
            them, and how many there were is not released.
        residual: what lies beneath the next adapter, under policy ``fedex``.
    """

    vector: NDArray[np.float64]
    count: int
    next_clip: float | None = None
    shortened: int | None = None
    residual: Residual | None = None


class Aggregator(Protocol):
    """Takes updates one at a time and releases one mean."""

    def add(self, vector: Vector) -> float:
        """Take one client's update; return its norm as it came, which is sensitive.

        The norm is NaN or infinite if a coordinate is. It is taken once, here, for everybody.
        """

    def release(self) -> Aggregate | None:
        """Return the mean; None if there is nothing to release."""


class UniformMean:
    """The plain mean of the updates that arrived, for modes ``none`` and ``example``.

    In mode ``example`` every update is already noised on its client, and a mean of noised updates
    is post-processing. A non-finite update counts as the zero update, and one that is longer than
    the bound is scaled down to that, so that the adapter stays finite.

    Args:
        size: number of parameters.
        bound: L2 norm to which longer updates are scaled down, > 0.
    """

    def __init__(self, size: int, *, bound: float = LONGEST_UPDATE) -> None:
        self._total: NDArray[np.float64] = np.zeros(size, dtype=np.float64)
        self._bound = bound
        self._shortened = 0
        self._count = 0

    def add(self, vector: Vector) -> float:
        """Take one client's update; return its norm as it came."""
        if vector.shape != self._total.shape:
            msg = f"Found an update of shape {vector.shape}, expected {self._total.shape}."
            raise SchemaMismatch(msg)
        norm = norm_of(vector)
        if math.isfinite(norm):
            add_scaled(self._total, vector, self._bound / max(norm, self._bound))
            self._shortened += norm > self._bound
        self._count += 1
        return norm

    def release(self) -> Aggregate | None:
        """Return the mean, or None if nobody answered."""
        if self._count == 0:
            return None
        mean = self._total / self._count
        return Aggregate(vector=mean, count=self._count, shortened=self._shortened)


class RobustUpdates:
    """What a robust rule makes of the updates that arrived, for modes ``none`` and ``example``.

    All updates of the round are held, ``4 n d`` bytes; see :mod:`server.robust`.

    Args:
        size: number of parameters.
        rule: which one, and what it assumes.
        bound: L2 norm to which longer updates are scaled down first, > 0.
    """

    def __init__(self, size: int, *, rule: RobustRule, bound: float = LONGEST_UPDATE) -> None:
        self._updates = BoundedRows(size, bound=bound)
        self._rule = rule

    def add(self, vector: Vector) -> float:
        """Keep one client's update; return its norm as it came."""
        return self._updates.add(vector)

    def release(self) -> Aggregate | None:
        """Return what the rule makes of the updates, or None if nobody answered.

        Raises:
            QuorumNotReached: if too few answered for what the rule must withstand.
        """
        rows = self._updates.rows
        if not rows:
            return None
        vector = self._rule.combine(rows)
        return Aggregate(vector=vector, count=len(rows), shortened=self._updates.shortened)


class CentralGaussian:
    """The clipped, noised mean of mode ``client-central``.

    Guarantee:
        Each update is clipped again here whatever the client did, the sum is noised with
        ``noise_multiplier * clipping_norm`` per coordinate, and the denominator is the expected
        cohort, a constant. An empty cohort releases noise alone: it is a round like any other.

    Args:
        size: number of parameters.
        plan: clip, noise and expected cohort.
        source: the generator of the noise.
        server_round: from 1; the plan may give rounds different noise.
    """

    def __init__(
        self, size: int, *, plan: PrivacyPlan, source: NoiseSource, server_round: int = 1
    ) -> None:
        self._mechanism = plan.mechanism_of(server_round)
        self._expected = plan.expected_cohort
        self._total = ClippedSum(dimension=size, clipping_norm=self._mechanism.clipping_norm)
        self._source = source

    def add(self, vector: Vector) -> float:
        """Clip one client's update and add it to the sum; return its norm as it came."""
        return self._total.clip_and_add(AdapterDelta(vector=vector))

    def release(self) -> Aggregate | None:
        """Noise the sum and divide by the expected cohort."""
        count = self._total.count
        mean = self._mechanism.release(
            self._total, expected_count=self._expected, source=self._source
        )
        return Aggregate(vector=np.asarray(mean.vector, dtype=np.float64), count=count)


class QuantileCentral:
    """The clipped, noised mean whose clip follows a quantile of the norms.

    Guarantee:
        That of :class:`CentralGaussian` with the plan's noise multiplier: the count that moves the
        clip is noised with its own part of it, and nothing but the noised count moves the clip.

    Args:
        size: number of parameters.
        plan: target, noise and expected cohort.
        source: the generator of the noise.
        clip: the clip in force.
    """

    def __init__(self, size: int, *, plan: PrivacyPlan, source: NoiseSource, clip: float) -> None:
        if plan.quantile is None or plan.noise_multiplier is None:
            msg = f"mode={plan.mode!r} without quantile clipping."
            raise ConflictingSettings(msg)
        self._mechanism = QuantileGaussian(
            noise_multiplier=plan.noise_multiplier,
            clipping=plan.quantile,
            clipping_norm=clip,
            sampling_probability=plan.sampling_probability,
        )
        self._expected = plan.expected_cohort
        self._total = QuantileSum(dimension=size, clipping_norm=clip)
        self._source = source

    def add(self, vector: Vector) -> float:
        """Clip one client's update, add it, count whether it was within; return its norm."""
        return self._total.clip_and_add(AdapterDelta(vector=vector))

    def release(self) -> Aggregate | None:
        """Noise sum and count, divide by the expected cohort, and move the clip."""
        count = self._total.count
        found = self._mechanism.release(
            self._total, expected_count=self._expected, source=self._source
        )
        vector = np.asarray(found.mean.vector, dtype=np.float64)
        return Aggregate(vector=vector, count=count, next_clip=found.next_clip)


class CorrelatedCentral:
    """The clipped mean with noise that is correlated over the rounds of the run.

    Guarantee:
        All rounds together are one Gaussian release of the plan's noise multiplier, for every
        client that takes part as seldom as a cyclic cohort asks it to. A client that does not
        answer counts as zero.

    Args:
        size: number of parameters.
        plan: clip, noise, bands and separation.
        server_round: from 1.
        noise: the run's rows, from :func:`correlated_noise`; the same object in every round.
    """

    def __init__(
        self, size: int, *, plan: PrivacyPlan, server_round: int, noise: CorrelatedNoise
    ) -> None:
        self._mechanism = _correlated(plan)
        self._expected = plan.expected_cohort
        self._total = ClippedSum(dimension=size, clipping_norm=self._mechanism.clipping_norm)
        self._round = server_round
        self._noise = noise

    def add(self, vector: Vector) -> float:
        """Clip one client's update and add it to the sum; return its norm as it came."""
        return self._total.clip_and_add(AdapterDelta(vector=vector))

    def release(self) -> Aggregate | None:
        """Add the round's row of noise and divide by the largest cohort."""
        count = self._total.count
        mean = self._mechanism.release(
            self._total,
            expected_count=self._expected,
            server_round=self._round,
            noise=self._noise,
        )
        return Aggregate(vector=np.asarray(mean.vector, dtype=np.float64), count=count)


def make_aggregator(
    size: int,
    *,
    plan: PrivacyPlan,
    source: NoiseSource,
    server_round: int = 1,
    clip: float | None = None,
    noise: CorrelatedNoise | None = None,
    robust: RobustRule | None = None,
    norm_bound: float | None = None,
) -> Aggregator:
    """Return the aggregator of a privacy plan.

    Args:
        size: number of parameters.
        plan: the privacy plan.
        source: noise of one round, for mechanisms whose rounds are independent.
        server_round: from 1, for correlated noise and for noise that changes over the rounds.
        clip: the clip in force, for quantile clipping; None is the first.
        noise: the run's rows, for correlated noise.
        robust: the rule against attackers; None is the mean.
        norm_bound: of updates that no clip bounds; None is :data:`LONGEST_UPDATE`.

    Raises:
        ConflictingSettings: for correlated noise without its rows, for client-distributed, and for
            a rule or a bound other than the clip that the noise is calibrated to.
    """
    if plan.distributed is not None:
        msg = f"mode={plan.mode!r}: updates are added up by secure aggregation, not here."
        raise ConflictingSettings(msg)
    if plan.mode != "client-central":
        bound = LONGEST_UPDATE if norm_bound is None else norm_bound
        if robust is not None:
            return RobustUpdates(size, rule=robust, bound=bound)
        return UniformMean(size, bound=bound)
    if robust is not None or norm_bound is not None:
        msg = f"mode={plan.mode!r}: noise is calibrated to the mean of clipped updates alone."
        raise ConflictingSettings(msg, hint="Leave aggregation.robust and norm_bound out.")
    if plan.correlated is not None:
        if noise is None:
            msg = "noise='correlated' without the rows of the run."
            raise ConflictingSettings(msg, hint="Make them once a run with correlated_noise.")
        return CorrelatedCentral(size, plan=plan, server_round=server_round, noise=noise)
    if plan.quantile is not None:
        start = plan.quantile.initial
        return QuantileCentral(size, plan=plan, source=source, clip=start if clip is None else clip)
    return CentralGaussian(size, plan=plan, source=source, server_round=server_round)


def correlated_noise(
    size: int, *, plan: PrivacyPlan, folder: Path, seed: int, finished: int
) -> CorrelatedNoise | None:
    """Return the rows of a run's correlated noise; None if the plan has none.

    With ``os-entropy`` the run's key is made in the folder before the first round, and must be
    there later; :func:`shared.privacy.noiserows.forget_rows` deletes it after the last.

    Args:
        size: number of parameters.
        plan: the privacy plan.
        folder: the run folder.
        seed: the run's seed, used only by ``"seeded-simulation"``.
        finished: rounds that were released; their rows are computed again, not used again.

    Raises:
        NotResumable: if the key of a run with finished rounds is missing.
        PrivacyError: if others may read the key, or it is damaged.
        RunFolderError: if it cannot be read or written.
    """
    if plan.correlated is None:
        return None
    seeded = plan.noise_source == SEEDED
    rows = NoiseRows.seeded(seed) if seeded else NoiseRows.of_run(folder, begun=finished > 0)
    return CorrelatedNoise(plan.correlated, dimension=size, rows=rows, used=finished)


def _correlated(plan: PrivacyPlan) -> CorrelatedGaussian:
    """Return the mechanism of a plan with correlated noise."""
    if plan.correlated is None or plan.clipping_norm is None or plan.noise_multiplier is None:
        msg = f"mode={plan.mode!r} without correlated noise."
        raise ConflictingSettings(msg)
    return CorrelatedGaussian(
        noise_multiplier=plan.noise_multiplier,
        clipping_norm=plan.clipping_norm,
        terms=plan.correlated,
    )
