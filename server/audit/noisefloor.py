"""What the releases of a run say about their own noise, whatever the data were.

Every round releases ``x = s + n``: the clipped updates ``s``, and noise ``n`` of a declared
standard deviation, both divided by a public number. Given everything before the round, ``n`` is
independent of ``s`` (and of the choice of coordinates that were kept), whatever the clients hold
and however they react to earlier releases.

Floor. Let P project onto the complement of the span of all earlier releases, which leaves ``m - k``
dimensions. Given the past and ``s``, ``|P x|**2 / stddev**2`` is noncentral chi-squared with
``m - k`` degrees of freedom, which is stochastically at least the central one. So the lower tail of
the central chi-squared is a valid p-value for "the noise is at least what was declared", whatever
``s`` is, and exact where ``s`` lies in the span. Rounds add up: a sum of terms that are each, given
the past, at least chi-squared is at least the chi-squared of the summed degrees. Blocks of
coordinates are tested alike, without projection. Noise that is repeated lies in the span of an
earlier release up to the difference of two ``s``, so the projection takes it away.

Ceiling. At most ``a`` updates of norm C are in ``s``, so ``|x|**2 / stddev**2`` is at most
noncentral chi-squared with noncentrality ``(a C)**2 / noise**2``: its upper tail is a valid p-value
for "no update was longer than the clip, and there is no more noise than declared". As ``a`` serves
a number that the cohort exceeds with a chance below 1e-9 (see :mod:`server.audit.declared`).

Correlated noise is undone first: row t of C times the releases is ``sum(c_i s[t - i]) + new``, and
the new noise of round t is independent of everything in the sum.

Skellam noise has the variance that was declared but heavier tails. Its square sums have variance
``m (2 + 1/V)`` in units of ``V**2``; statistic and degrees of freedom are scaled to match. It is a
sum of m independent terms, so this is the central limit theorem and not exact. A symmetric unimodal
noise moved by an independent integer is stochastically longer, as for a normal one.

Releases are rounded to float32, a relative error of 6e-8 that is far below what chance does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from server.audit.conformance import PER_TEST, Check, Test, smallest
from server.audit.declared import (
    DeclaredNoise,
    clips_in_force,
    declared_noise,
    most_answers,
    noise_factors,
)
from server.audit.evidence import boolean, integer, number, numbers, stored, text
from server.audit.protocol import Floats
from server.audit.runrecord import Releases, RunRecord
from shared.errors import AuditError

FLOOR = "noise-floor"
CEILING = "clip-ceiling"

MOST_BLOCKS = 64
LEAST_BLOCK = 256
HALF = 0.5
"""Noise at this share of what was declared must be visible, or the floor says too little."""

_DIGITS = 4
_REACH = 6.5


def measure_releases(record: RunRecord) -> dict[str, Any]:
    """Return the lengths of the releases, in units of the declared noise.

    Nothing here depends on anything but the releases, which the guarantee makes public, and the
    public terms of the plan.

    Args:
        record: the run; its releases may be missing.

    Raises:
        AuditError: if the rounds and the releases do not belong together.
    """
    declared, releases = declared_noise(record.plan), record.releases
    if declared is None:
        return {"skipped": _no_noise(record)}
    if releases is None or not releases.rounds:
        return {"missing": "The run did not keep its releases."}
    scaled, signal = _scaled(record, releases, declared)
    projected, ranks = _projected(scaled)
    kept = scaled.shape[1]
    blocks = np.array_split(scaled, max(1, min(MOST_BLOCKS, kept // LEAST_BLOCK)), axis=1)
    return {
        "rounds": len(releases.rounds),
        "planned": record.plan.rounds,
        "kept": kept,
        "of": record.dimension,
        "over_clip": declared.over_clip,
        "kurtosis": declared.kurtosis,
        "projected": stored(projected, digits=_DIGITS),
        "ranks": ranks,
        "whole": stored(np.square(scaled).sum(axis=1), digits=_DIGITS),
        "signal": stored(signal, digits=_DIGITS),
        "blocks": stored(np.array([np.square(block).sum() for block in blocks]), digits=_DIGITS),
        "ceiling": not declared.correlated or _complete(releases),
    }


def check_floor(evidence: Mapping[str, Any]) -> Check:
    """Test that there is at least the declared noise.

    Raises:
        AuditError: if the evidence is malformed.
    """
    if (early := _untested(FLOOR, evidence)) is not None:
        return early
    lengths, degrees, scale = _floor_numbers(evidence)
    blocks, sizes = _block_numbers(evidence)
    tests = (
        Test(
            name="all rounds",
            p=_lower(float(lengths.sum()), float(degrees.sum()), scale),
            broken="All rounds together hold less noise than the plan declares.",
        ),
        Test(
            name="worst round",
            p=smallest(_lower(x, n, scale) for x, n in zip(lengths, degrees, strict=True)),
            broken="A round holds less new noise than the plan declares: it is too small, missing, "
            "or repeats that of an earlier round.",
        ),
        Test(
            name="worst block",
            p=smallest(_lower(x, n, scale) for x, n in zip(blocks, sizes, strict=True)),
            broken="A part of the adapter holds less noise than the plan declares.",
        ),
    )
    facts, doubts = _floor_power(evidence)
    return Check(name=FLOOR, tests=tests, facts=facts, doubts=doubts)


def check_ceiling(evidence: Mapping[str, Any]) -> Check:
    """Test that no release is longer than the clip and the declared noise allow.

    Raises:
        AuditError: if the evidence is malformed.
    """
    if (early := _untested(CEILING, evidence)) is not None:
        # Without releases the floor says so already.
        return Check(name=CEILING, skipped=early.skipped or "The run did not keep its releases.")
    if not boolean(evidence, "ceiling"):
        return Check(
            name=CEILING,
            skipped="Releases are missing in between, so correlated noise cannot be undone.",
        )
    rounds, kept = integer(evidence, "rounds", low=1), integer(evidence, "kept", low=1)
    whole, signal = (numbers(evidence, key, size=rounds) for key in ("whole", "signal"))
    scale = _moments(evidence)
    tests = (
        Test(
            name="longest round",
            p=smallest(_upper(x, kept, s, scale) for x, s in zip(whole, signal, strict=True)),
            broken="A release is longer than the clip and the declared noise allow.",
        ),
        Test(
            name="all rounds",
            p=_upper(float(whole.sum()), float(rounds * kept), float(signal.sum()), scale),
            broken="All releases together are longer than the clip and the declared noise allow.",
        ),
    )
    seen = math.sqrt(float(signal.max()) + _REACH * math.sqrt(2.0 * kept))
    clips = seen * number(evidence, "over_clip", low=0.0)
    fact = (
        f"A sum of updates of about {clips:.3g} clips in length would have been seen as too long."
    )
    return Check(name=CEILING, tests=tests, facts=(fact,))


def _scaled(
    record: RunRecord, releases: Releases, declared: DeclaredNoise
) -> tuple[Floats, Floats]:
    """Return releases in units of their new noise, and the longest signal, squared, of each."""
    if releases.values.shape[1] > record.dimension:
        msg = f"releases have {releases.values.shape[1]} values, the adapter {record.dimension}."
        raise AuditError(msg)
    said = {r.server_round: r.clipping_norm for r in record.rounds}
    if missing := [number_ for number_ in releases.rounds if number_ not in said]:
        msg = f"releases of rounds that are not in the metrics: {missing[:5]}."
        raise AuditError(msg, hint="The folder holds parts of two runs, or the metrics were cut.")
    clips = clips_in_force(record.plan, [said[number_] for number_ in releases.rounds])
    over_clip = declared.over_clip * noise_factors(record.plan, releases.rounds)
    stddev = (over_clip * clips / declared.divisor)[:, None]
    rows = releases.values / stddev
    signals = most_answers(record.plan, record.population) / over_clip
    if not declared.correlated or not _complete(releases):
        return rows, np.square(signals)
    # |sum(c_i s[t - i])| is at most the sum of the lengths.
    weights = np.zeros(len(clips))
    known = np.array(declared.coefficients[: len(clips)])
    weights[: known.size] = known
    return declared.whitened(rows), np.square(signals * np.cumsum(weights))


def _projected(rows: Floats) -> tuple[Floats, list[int]]:
    """Return the squared length of each row off the span of the rows before it, and its rank.

    The span stops growing at half of the coordinates, so that something is left to test.
    """
    count, width = rows.shape
    basis = np.empty((min(count, width // 2), width))
    lengths, ranks, rank = np.empty(count), [], 0
    for index, row in enumerate(rows):
        known = basis[:rank]
        rest = row - known.T @ (known @ row)
        rest -= known.T @ (known @ rest)
        norm = float(np.linalg.norm(rest))
        lengths[index] = norm**2
        ranks.append(rank)
        if rank < basis.shape[0] and norm > 1e-9 * float(np.linalg.norm(row)):
            basis[rank] = rest / norm
            rank += 1
    return lengths, ranks


def _floor_numbers(evidence: Mapping[str, Any]) -> tuple[Floats, Floats, float]:
    """Read projected lengths with their degrees of freedom, and the scale of the moments."""
    rounds, kept = integer(evidence, "rounds", low=1), integer(evidence, "kept", low=1)
    ranks = numbers(evidence, "ranks", size=rounds)
    if not (ranks >= 0).all() or not (ranks <= kept / 2).all():
        msg = f"evidence 'ranks': expected numbers from 0 to {kept / 2:g}."
        raise AuditError(msg)
    return numbers(evidence, "projected", size=rounds), kept - ranks, _moments(evidence)


def _block_numbers(evidence: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Read the blocks' lengths with their degrees of freedom."""
    rounds, kept = integer(evidence, "rounds", low=1), integer(evidence, "kept", low=1)
    blocks = numbers(evidence, "blocks")
    if not 1 <= blocks.size <= kept:
        msg = f"evidence 'blocks' has {blocks.size} entries, expected 1 to {kept}."
        raise AuditError(msg)
    sizes = np.full(blocks.size, kept // blocks.size, dtype=np.float64)
    sizes[: kept % blocks.size] += 1
    return blocks, sizes * rounds


def _floor_power(evidence: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Say how much noise could have been missing unseen: facts, then doubts.

    Clients' updates add length. If the run is honest, what is above the declared noise is theirs;
    noise at a share f of the declared would then have left ``f**2`` plus that, and is seen where
    this is below the critical length. The best of the whole and of all blocks counts.
    """
    lengths, degrees, scale = _floor_numbers(evidence)
    blocks, sizes = _block_numbers(evidence)
    parts = [(float(lengths.sum()), float(degrees.sum()), 1)]
    parts += [(x, n, blocks.size) for x, n in zip(blocks, sizes, strict=True)]
    visible = 0.0
    for length, freedom, count in parts:
        critical = 2.0 * special.gammaincinv(scale * freedom / 2.0, PER_TEST / count)
        share = critical / (scale * freedom) - max(0.0, length / freedom - 1.0)
        visible = max(visible, share)
    ratio = parts[0][0] / parts[0][1]
    fact = (
        f"{lengths.size} releases of {integer(evidence, 'kept')} kept coordinates hold "
        f"{ratio:.4f} times the energy of the declared noise; with less than "
        f"{100 * math.sqrt(visible):.1f} % of its standard deviation they would have been flagged."
    )
    doubts = []
    if not math.sqrt(visible) >= HALF:
        doubts.append(
            "The clients' updates are so long against the noise, or the kept coordinates so few, "
            "that half of the noise could be missing unseen."
        )
    if lengths.size == 1 and integer(evidence, "planned", low=1) > 1:
        doubts.append("One release cannot show whether noise is repeated.")
    return (fact,), tuple(doubts)


def _untested(name: str, evidence: Mapping[str, Any]) -> Check | None:
    """Return the check of a run without noise on the mean, or without releases."""
    if "skipped" in evidence:
        return Check(name=name, skipped=text(evidence, "skipped"))
    if "missing" in evidence:
        return Check(name=name, doubts=(text(evidence, "missing"),))
    return None


def _no_noise(record: RunRecord) -> str:
    """Say why there is no floor."""
    if record.plan.mode == "example":
        return "Every client adds its own noise in its own steps, so the mean has no known floor."
    return "The run adds no noise and claims nothing."


def _moments(evidence: Mapping[str, Any]) -> float:
    """Return what statistic and degrees of freedom are scaled by, so that variances match."""
    return 2.0 / (2.0 + number(evidence, "kurtosis", low=0.0))


def _lower(length: float, freedom: float, scale: float) -> float:
    """Return the chance that noise alone is as short."""
    return float(special.chdtr(scale * freedom, scale * max(length, 0.0)))


def _upper(length: float, freedom: float, signal: float, scale: float) -> float:
    """Return the chance that noise with the longest signal is as long."""
    below = special.chndtr(scale * max(length, 0.0), scale * freedom, scale * max(signal, 0.0))
    return float(min(1.0, max(0.0, 1.0 - below)))


def _complete(releases: Releases) -> bool:
    """Tell whether the first rounds are all there."""
    return releases.rounds == tuple(range(1, len(releases.rounds) + 1))
