"""Whether the clip that was in force is the plan's, or moved no farther than it may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from server.audit.conformance import Check, exact
from server.audit.declared import clips_in_force, most_answers
from server.audit.evidence import boolean, integer, number, text
from server.audit.runrecord import RunRecord
from shared.privacy.plan import PrivacyPlan

NAME = "clip-path"

# Normal noise is farther out than this many deviations with a chance below 1e-9.
_REACH = 6.5


def measure_clips(record: RunRecord) -> dict[str, Any]:
    """Return what the rounds said about their clip, against the plan."""
    plan, rounds = record.plan, record.rounds
    if plan.clipping_norm is None:
        return {"skipped": "No update of a whole client is clipped in this mode."}
    if plan.quantile is None:
        other = [r for r in rounds if r.clipping_norm not in (None, plan.clipping_norm)]
        return {"moving": False, "rounds": len(rounds), "other": len(other)}
    clips = clips_in_force(plan, [r.clipping_norm for r in rounds])
    low, high = plan.quantile.smallest, plan.quantile.largest
    moves = plan.quantile.target - 0.5 - np.diff(np.log(clips)) / plan.quantile.learning_rate
    # A clip at the edge of its range was cut there, and says nothing about the count.
    free = (clips[1:] > low) & (clips[1:] < high)
    return {
        "moving": True,
        "rounds": len(rounds),
        "first": bool(clips.size == 0 or clips[0] == plan.quantile.initial),
        "within": bool(((clips >= low) & (clips <= high)).all()),
        "farthest": round(float(np.abs(moves[free]).max(initial=0.0)), 9),
        "allowed": round(_farthest(plan, record.population), 9),
    }


def check_clips(evidence: Mapping[str, Any]) -> Check:
    """Compare the clips that were in force with what the plan allows.

    Raises:
        AuditError: if the evidence is malformed.
    """
    if "skipped" in evidence:
        return Check(name=NAME, skipped=text(evidence, "skipped"))
    integer(evidence, "rounds", low=0)
    if not boolean(evidence, "moving"):
        other = integer(evidence, "other", low=0)
        test = exact("clip", holds=other == 0, broken=f"{other} rounds ran with another clip.")
        return Check(name=NAME, tests=(test,))
    tests = (
        exact(
            "first clip",
            holds=boolean(evidence, "first"),
            broken="The first round did not run with the first clip of the plan.",
        ),
        exact(
            "range",
            holds=boolean(evidence, "within"),
            broken="A clip was outside the range of the plan.",
        ),
        exact(
            "steps",
            holds=number(evidence, "farthest") <= number(evidence, "allowed") * (1 + 1e-6),
            broken="The clip moved farther in a round than the clients' bits and their noise can.",
        ),
    )
    return Check(name=NAME, tests=tests)


def _farthest(plan: PrivacyPlan, population: int) -> float:
    """Return how far the noised share within the clip can be from one half.

    Half of the most answers, and noise that is farther out with a chance below 1e-9 a round.
    """
    if plan.quantile is None:
        return 0.0
    divisor = plan.sampling_probability * plan.population
    noise = _REACH * plan.quantile.count_noise_stddev
    return (most_answers(plan, population) / 2.0 + noise) / divisor
