"""Evidence of a run's own canary clients: their cosines and scores, from rounds or adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.audit import evidence as read
from server.audit.directions import ClientCanaries, lean, sampled_schedule, schedule_of
from server.audit.protocol import Floats
from server.audit.runrecord import Releases, RunRecord

_DIGITS = 9


def measure_run(record: RunRecord, canaries: ClientCanaries) -> dict[str, Any]:
    """Return the evidence of a run's own canaries: from its rounds, or from its adapter alone."""
    releases = record.releases
    if releases is not None and releases.rounds:
        return _of_rounds(record, canaries, releases)
    return _of_adapter(record, canaries)


def _of_rounds(record: RunRecord, canaries: ClientCanaries, releases: Releases) -> dict[str, Any]:
    """Look for the canaries in what single rounds released."""
    dimension = record.dimension
    clip_of = {entry.server_round: entry.clipping_norm for entry in record.rounds}
    clips = np.array([clip_of.get(number) or 1.0 for number in releases.rounds])
    schedule = schedule_of(
        record.plan, canaries, population=record.population, rounds=releases.rounds
    )
    found = lean(
        releases.values,
        clips=clips,
        schedule=schedule,
        directions=lambda index: canaries.direction(index, dimension),
        dimension=dimension,
        coordinates=releases.coordinates,
    )
    noise, predicted = schedule.noise_multiplier, schedule.predicted(dimension)
    lengths = found.lengths * record.plan.expected_cohort
    return {
        "source": "releases",
        "rounds": len(releases.rounds),
        "coordinates": releases.values.shape[1],
        "cosines": read.stored(found.cosines, digits=_DIGITS),
        "scores": None if noise is None else read.stored(found.scores, digits=_DIGITS),
        "spread": round(found.spread, _DIGITS),
        "predicted": predicted,
        "sampling_variance": schedule.sampling_variance,
        "mean_square_length": None if noise is None else float(np.mean((lengths / noise) ** 2)),
        "own_square_length": None
        if noise is None
        else float(schedule.power.mean() * canaries.count / (noise**2 * dimension)),
        **_every_round(releases, canaries, dimension),
    }


def _of_adapter(record: RunRecord, canaries: ClientCanaries) -> dict[str, Any]:
    """Look for the canaries in the change of the adapter, where no round was kept.

    What the server's optimizer did to the releases is unknown here, so nothing is predicted.
    Directions are isotropic, so a cosine without the canary's help is as likely as ever.
    """
    dimension = record.dimension
    change = record.released.astype(np.float64) - record.initial.astype(np.float64)
    found = lean(
        change[None, :],
        clips=np.ones(1),
        schedule=sampled_schedule(
            rounds=1, canaries=canaries.count, probability=1.0, noise_multiplier=None
        ),
        directions=lambda index: canaries.direction(index, dimension),
        dimension=dimension,
    )
    return {
        "source": "adapter",
        "rounds": len(record.rounds),
        "coordinates": dimension,
        "cosines": read.stored(found.cosines, digits=_DIGITS),
        "scores": None,
        "spread": None,
        "predicted": None,
        "sampling_variance": _sampling_variance(record),
        "mean_square_length": None,
        "own_square_length": None,
        "largest_seen": None,
        "largest_unseen": None,
    }


def _sampling_variance(record: RunRecord) -> float:
    """Return the planned variance of a canary's statistic that its own coins cause."""
    plan = record.plan
    if plan.correlated is not None or plan.noise_multiplier is None:
        return 0.0
    q = plan.sampling_probability if plan.unit == "client" else 1.0
    return q * (1 - q) / plan.noise_multiplier**2


def _every_round(
    releases: Releases, canaries: ClientCanaries, dimension: int
) -> dict[str, list[float]]:
    """Return each canary's largest cosine with a single round, and that of unseen directions."""
    lengths = np.linalg.norm(releases.values, axis=1)
    kept = lengths > 0
    values, lengths = releases.values[kept], lengths[kept]

    def largest(direction: Floats) -> float:
        inside = _inside(direction, releases.coordinates)
        if values.size == 0:
            return 0.0
        return float((values @ inside / lengths).max() / np.linalg.norm(inside))

    indices = range(canaries.count)
    seen = np.array([largest(canaries.direction(index, dimension)) for index in indices])
    unseen = np.array([largest(canaries.unseen(index, dimension)) for index in indices])
    return {
        "largest_seen": read.stored(seen, digits=_DIGITS),
        "largest_unseen": read.stored(unseen, digits=_DIGITS),
    }


def _inside(direction: Floats, coordinates: NDArray[np.int64] | None) -> Floats:
    """Return the part of a direction that lies in the coordinates that were kept."""
    return direction if coordinates is None else direction[coordinates]
