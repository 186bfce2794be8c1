"""From updates to one released mean, streaming: memory does not grow with the cohort.

Weights are uniform. Client-reported counts are neither asked for nor used: an average weighted by
them has a sensitivity that no noise was calibrated for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import SchemaMismatch
from shared.lora import Vector
from shared.privacy.mechanism import AdapterDelta, ClippedSum, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.wire import Stage

STAGE_OF_MODE: dict[str, Stage] = {
    "none": "plain",
    "example": "noised",
    "client-central": "clipped",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What a round releases to the server optimizer.

    Attributes:
        vector: the mean update, float64.
        count: updates that went in; known to the server, not released.
    """

    vector: NDArray[np.float64]
    count: int


class Aggregator(Protocol):
    """Takes updates one at a time and releases one mean."""

    def add(self, vector: Vector) -> None:
        """Take one client's update."""

    def release(self) -> Aggregate | None:
        """Return the mean; None if there is nothing to release."""


class UniformMean:
    """The plain mean of the updates that arrived, for modes ``none`` and ``example``.

    In mode ``example`` every update is already noised on its client, and a mean of noised updates
    is post-processing. A non-finite update counts as the zero update.
    """

    def __init__(self, size: int) -> None:
        self._total: NDArray[np.float64] = np.zeros(size, dtype=np.float64)
        self._count = 0

    def add(self, vector: Vector) -> None:
        """Take one client's update."""
        if vector.shape != self._total.shape:
            msg = f"Found an update of shape {vector.shape}, expected {self._total.shape}."
            raise SchemaMismatch(msg)
        if np.isfinite(vector).all():
            self._total += vector
        self._count += 1

    def release(self) -> Aggregate | None:
        """Return the mean, or None if nobody answered."""
        if self._count == 0:
            return None
        return Aggregate(vector=self._total / self._count, count=self._count)


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
    """

    def __init__(self, size: int, *, plan: PrivacyPlan, source: NoiseSource) -> None:
        self._mechanism = plan.mechanism
        self._expected = plan.expected_cohort
        self._total = ClippedSum(dimension=size, clipping_norm=self._mechanism.clipping_norm)
        self._source = source

    def add(self, vector: Vector) -> None:
        """Clip one client's update and add it to the sum."""
        norm = self._mechanism.clipping_norm
        self._total.add(clip_update(AdapterDelta(vector=vector), clipping_norm=norm))

    def release(self) -> Aggregate | None:
        """Noise the sum and divide by the expected cohort."""
        count = self._total.count
        mean = self._mechanism.release(
            self._total, expected_count=self._expected, source=self._source
        )
        return Aggregate(vector=np.asarray(mean.vector, dtype=np.float64), count=count)


def make_aggregator(size: int, *, plan: PrivacyPlan, source: NoiseSource) -> Aggregator:
    """Return the aggregator of a privacy mode."""
    if plan.mode == "client-central":
        return CentralGaussian(size, plan=plan, source=source)
    return UniformMean(size)
