"""Conclusions of the client-canary audit: what the run shows, and what the rehearsal shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scipy import special

from server.audit import evidence as read
from server.audit import gdp
from server.audit.cosines import Pooled, andrew_epsilon, andrew_lower_bound, null_tail, pooled
from server.audit.protocol import Control, Evidence
from server.audit.stats import auc
from server.audit.verdict import Bound
from shared.errors import AuditError

CONFORMANCE = 1e-3
"""Chance of a false alarm of each test of conformance."""

POWER = 0.8
"""Chance with which half of the noise must be noticed for a run to count as tested."""

_DRIFT = 0.5
_COHERENT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """A mean score held against the one that the plan predicts.

    Attributes:
        mean: of the scores.
        predicted: by the plan.
        standard_error: of the mean, as planned.
        limit: standard errors from which on it is a deviation.
    """

    mean: float
    predicted: float
    standard_error: float
    limit: float

    @property
    def sigmas(self) -> float:
        """How many standard errors the mean lies above the prediction."""
        return (self.mean - self.predicted) / self.standard_error

    def halved(self, drift: float) -> bool:
        """Tell whether half of the noise would probably have been noticed.

        Args:
            drift: mean square of what clients learned in a round, in units of the planned noise.
        """
        expected = self.predicted / math.sqrt(0.25 + drift) - self.predicted
        return expected >= (self.limit + float(special.ndtri(POWER))) * self.standard_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one half comes to.

    Attributes:
        words: what was seen, in plain words.
        derived: numbers worked out from the evidence.
        broken: why conformance is broken, if so.
        weak: why a fault could have stayed unseen, if so.
    """

    words: str
    derived: Mapping[str, Any]
    broken: list[str] = field(default_factory=list)
    weak: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPart(Part):
    """What the run's own canaries show.

    Attributes:
        pooled: estimate and lower bound of epsilon.
        ceiling: the largest lower bound that so many canaries could give.
        detected: whether the canaries can be seen at all.
        violated: whether the lower bound is above the claim.
        unseen: directions that no client sent and that were looked for, too.
    """

    pooled: Pooled
    ceiling: float
    detected: bool
    violated: bool
    unseen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalPart(Part):
    """What the rehearsal shows.

    Attributes:
        canaries: virtual ones.
        control: whether half of the noise was noticed.
    """

    canaries: int
    control: Control


def conclude_run(
    evidence: Evidence, *, bound: Bound, delta: float, alpha: float, conformance: float
) -> RunPart:
    """Conclude from the run's own canaries.

    Args:
        evidence: of the whole audit.
        bound: the claim at which a lower bound is a violation.
        delta: at which epsilon is stated.
        alpha: chance of a false violation by the bound.
        conformance: chance of a false alarm, both sides together, by the mean score.

    Raises:
        AuditError: if the evidence is malformed.
    """
    count = read.integer(evidence, "canaries", low=1)
    dimension = read.integer(evidence, "dimension", low=2)
    run = read.mapping(evidence, "run")
    kept = read.integer(run, "coordinates", low=2, high=dimension)
    cosines = read.numbers(run, "cosines", size=count)
    sampling = read.number(run, "sampling_variance", low=0)
    estimate = pooled(
        cosines,
        dimension=kept,
        delta=delta,
        alpha=alpha,
        share=kept / dimension,
        sampling_variance=sampling,
    )
    reach = float(special.ndtri(alpha)) * estimate.standard_error
    deviation = _deviation(run, count, dimension, kept, conformance)
    drift = _drift(run)
    broken, weak = _conformance(deviation, drift, run)
    derived = {
        "delta": delta,
        "mu": estimate.mu,
        "standard_error": estimate.standard_error,
        "epsilon_estimate": estimate.epsilon,
        "p_value": float(special.ndtr(-estimate.mu / math.sqrt(dimension / kept / count))),
        "largest_cosine_p_value": min(1.0, count * null_tail(float(cosines.max()), kept)),
        "andrew_epsilon": andrew_epsilon(cosines, dimension=kept, delta=delta),
        "andrew_lower_bound": andrew_lower_bound(cosines, dimension=kept, delta=delta, alpha=alpha),
        "every_round_auc": _every_round_auc(run),
        **_derived(deviation),
        "drift": drift,
    }
    if deviation is not None:
        derived["epsilon_predicted"] = gdp.epsilon(max(0.0, deviation.predicted), delta)
    return RunPart(
        words=_run_words(count, estimate, delta, deviation, drift),
        derived=derived,
        broken=broken,
        weak=weak,
        pooled=estimate,
        ceiling=gdp.epsilon(max(0.0, math.sqrt(dimension / count) + reach), delta),
        detected=estimate.mu + reach > 0,
        violated=bound.epsilon is not None and estimate.lower > bound.epsilon,
        unseen=0 if run.get("largest_unseen") is None else count,
    )


def conclude_rehearsal(evidence: Evidence, *, conformance: float) -> RehearsalPart:
    """Conclude from the rehearsal of the installed mechanism.

    Args:
        evidence: of the whole audit.
        conformance: chance of a false alarm, both sides together.

    Raises:
        AuditError: if the evidence is malformed.
    """
    rehearsal = read.mapping(evidence, "rehearsal")
    count = read.integer(rehearsal, "canaries", low=1)
    planned, halved = (_rehearsed(rehearsal, name, conformance) for name in ("planned", "halved"))
    caught = halved.sigmas > halved.limit
    broken = []
    if abs(planned.sigmas) > planned.limit:
        more = "less noise or more weight" if planned.sigmas > 0 else "more noise or less weight"
        broken = [f"The mechanism as installed does not conform to the plan: {more} than planned."]
    words = (
        f"In a rehearsal of the installed mechanism ({rehearsal.get('mechanism')}), with {count} "
        f"virtual canary clients and no data, canaries scored {planned.mean:.3f} where the plan "
        f"predicts {planned.predicted:.3f} ({planned.sigmas:+.1f} standard errors); with half of "
        f"the noise they scored {halved.mean:.3f} ({halved.sigmas:+.1f}). A rehearsal says "
        "something about the code, and about a run only as far as the run used it."
    )
    return RehearsalPart(
        words=words,
        derived={"planned": _derived(planned), "halved": _derived(halved)},
        broken=broken,
        canaries=count,
        control=Control(
            source="the rehearsal with half of the noise", detected=caught, value=halved.mean
        ),
    )


def _rehearsed(rehearsal: Evidence, name: str, conformance: float) -> Deviation:
    """Read one performance of the rehearsal."""
    count = read.integer(rehearsal, "canaries", low=1)
    dimension = read.integer(rehearsal, "dimension", low=2)
    performed = read.mapping(rehearsal, name)
    return _held_against(
        mean=read.number(performed, "mean"),
        predicted=read.number(rehearsal, "predicted", low=0),
        noise_part=read.number(performed, "spread", low=0),
        sampling=read.number(rehearsal, "sampling_variance", low=0),
        count=count,
        dimension=dimension,
        conformance=conformance,
    )


def _deviation(
    run: Evidence, count: int, dimension: int, kept: int, conformance: float
) -> Deviation | None:
    """Read the scores of a run's own canaries; None where the plan predicts nothing."""
    if run.get("scores") is None or run.get("predicted") is None:
        return None
    return _held_against(
        mean=float(read.numbers(run, "scores", size=count).mean()),
        predicted=read.number(run, "predicted", low=0),
        noise_part=read.number(run, "spread", low=0) * dimension / kept,
        sampling=read.number(run, "sampling_variance", low=0),
        count=count,
        dimension=dimension,
        conformance=conformance,
    )


def _held_against(
    *,
    mean: float,
    predicted: float,
    noise_part: float,
    sampling: float,
    count: int,
    dimension: int,
    conformance: float,
) -> Deviation:
    """Hold a mean against its prediction.

    The variance of one score: what noise and other clients put in the canary's direction, what the
    other canaries put there (twice, because each pair counts in both of its scores), and its coins.
    """
    pairs = count * predicted**2 / dimension
    variance = (noise_part + pairs + sampling) / count
    if not variance > 0:
        # Releases of zeros: whatever is predicted above zero is then far away.
        variance = 1.0 / count
    return Deviation(
        mean=mean,
        predicted=predicted,
        standard_error=math.sqrt(variance),
        limit=-float(special.ndtri(conformance / 2)),
    )


def _drift(run: Evidence) -> float | None:
    """Return how much longer rounds are than their planned noise, squared and less one."""
    if run.get("mean_square_length") is None:
        return None
    length = read.number(run, "mean_square_length", low=0)
    return max(0.0, length - 1.0 - read.number(run, "own_square_length", low=0))


def _conformance(
    deviation: Deviation | None, drift: float | None, run: Evidence
) -> tuple[list[str], list[str]]:
    """Return why conformance is broken, and why a fault could have stayed unseen."""
    if deviation is None or drift is None:
        return [], ["Rounds with planned noise were not kept, so only the bound was tested."]
    if deviation.sigmas > deviation.limit:
        words = (
            "The canaries of the run lean further than the plan predicts: the noise was smaller, "
            "or a client weighed more, than planned."
        )
        return [words], []
    if deviation.halved(drift):
        return [], []
    if drift > _DRIFT or read.number(run, "spread") > _COHERENT:
        words = "What clients learned is so long beside the noise that half of it could hide there."
        return [], [words]
    return [], [
        "With so few canaries, or so rarely sampled, half of the noise could have stayed unseen."
    ]


def _every_round_auc(run: Evidence) -> float | None:
    """Return how well the largest cosine of a single round tells canaries from other directions."""
    if run.get("largest_seen") is None or run.get("largest_unseen") is None:
        return None
    seen, unseen = (read.numbers(run, f"largest_{name}") for name in ("seen", "unseen"))
    if not min(seen.size, unseen.size) >= 1:
        msg = "evidence 'largest_seen': it is empty, expected one number per canary."
        raise AuditError(msg)
    return auc(seen, unseen)


def _derived(deviation: Deviation | None) -> dict[str, Any]:
    """Return the numbers of a deviation for the report."""
    if deviation is None:
        return {}
    return {
        "mean_score": deviation.mean,
        "predicted_score": deviation.predicted,
        "score_standard_error": deviation.standard_error,
        "sigmas": deviation.sigmas,
        "limit": deviation.limit,
    }


def _run_words(
    count: int,
    estimate: Pooled,
    delta: float,
    deviation: Deviation | None,
    drift: float | None,
) -> str:
    """Return what the run's own canaries show in plain words."""
    words = (
        f"{count} canary clients lean the release by mu = {estimate.mu:.3f} "
        f"(standard error {estimate.standard_error:.3f}), which, if noise is Gaussian, bounds "
        f"epsilon from below by {estimate.lower:.3f} and estimates it as {estimate.epsilon:.3f} at "
        f"delta {delta:g}, against someone who does not know in which rounds a client took part."
    )
    if deviation is None:
        return words
    words += (
        f" Round by round they score {deviation.mean:.3f}, where the plan predicts "
        f"{deviation.predicted:.3f} without data ({deviation.sigmas:+.1f} standard errors)."
    )
    if deviation.sigmas < -deviation.limit and drift is not None:
        words += (
            f" Less than predicted is what clients' own updates do: they make the square of a "
            f"round's length {1 + drift:.2f} times that of the noise."
        )
    return words
