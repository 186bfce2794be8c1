"""From a measurement to a verdict: which epsilon applies, and what a null result is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.audit.protocol import AuditContext, Verdict

LARGEST_USEFUL_DELTA = 0.01
"""A group delta above this makes the guarantee, and so any test of it, empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The guarantee that one canary may be held against.

    Args:
        epsilon: None if the run does not say what covers a canary.
        delta: None together with epsilon.
        note: how it follows from the claim, in words.
    """

    epsilon: float | None
    delta: float | None
    note: str


def bound_for(context: AuditContext) -> Bound:
    """Return the guarantee that covers all copies of one canary.

    At client level all copies sit in one client, which is one unit, whatever their number. At
    example level every copy is a unit, and ``k`` copies are protected by group privacy alone:
    ``k epsilon`` and ``delta (e^(k epsilon) - 1) / (e^epsilon - 1)``.
    """
    epsilon, delta = context.claim.epsilon_applicable, context.claim.delta
    repeats = context.canaries.repeats
    if context.claim.epsilon is None:
        return Bound(epsilon=None, delta=None, note="The run claims no epsilon.")
    if epsilon is None or delta is None:
        note = (
            "Nobody computed the epsilon that covers replacing what a canary replaces, so no bound "
            "can contradict the claim."
        )
        return Bound(epsilon=None, delta=None, note=note)
    if context.claim.unit == "client":
        note = (
            f"A canary changes the data of one client, so it is held against the epsilon "
            f"{epsilon:.3g} of replacing one client, with all {repeats} copies in it."
        )
        return Bound(epsilon=epsilon, delta=delta, note=note)
    if repeats == 1:
        note = f"A canary is one example, held against epsilon {epsilon:.3g}."
        return Bound(epsilon=epsilon, delta=delta, note=note)
    return _group(epsilon, delta, repeats)


def claim_delta(context: AuditContext) -> float:
    """Return the delta at which a lower bound is stated: what covers a canary, else the claim's.

    A run that claims nothing is judged at delta 0, where a lower bound means most.
    """
    bound = bound_for(context)
    if bound.delta is not None:
        return bound.delta
    return 0.0 if context.claim.delta is None else context.claim.delta


def _group(epsilon: float, delta: float, repeats: int) -> Bound:
    """Return the group-privacy guarantee of several copies of one example."""
    total = repeats * epsilon
    # log of delta * expm1(total) / expm1(epsilon); epsilon = 0 gives delta * repeats.
    growth = repeats if epsilon == 0 else _log_expm1(total) - _log_expm1(epsilon)
    log_delta = math.log(delta) + (math.log(growth) if epsilon == 0 else growth)
    if not log_delta <= math.log(LARGEST_USEFUL_DELTA):
        note = (
            f"{repeats} copies of one example are covered by group privacy with a delta above "
            f"{LARGEST_USEFUL_DELTA}, which promises nothing that a test could contradict."
        )
        return Bound(epsilon=None, delta=None, note=note)
    group_delta = math.exp(log_delta)
    note = (
        f"{repeats} copies of one example are held against the group-privacy epsilon {total:.3g} "
        f"at delta {group_delta:.2g}."
    )
    return Bound(epsilon=total, delta=group_delta, note=note)


def _log_expm1(x: float) -> float:
    """Return ``log(e^x - 1)`` for positive x without overflow."""
    return x + math.log1p(-math.exp(-x))


def judge(
    context: AuditContext,
    *,
    audit: str,
    ceiling_epsilon: float,
    detected: bool,
    violated: bool = False,
) -> tuple[Verdict, bool | None, str]:
    """Decide the verdict of a finding.

    Args:
        context: the claim, the canaries and the positive control.
        audit: name of the audit.
        ceiling_epsilon: the largest epsilon that a perfect attacker could have certified.
        detected: whether the attack worked here; then it needs no control to show that it can.
        violated: whether a certified lower bound lies above the epsilon that applies.

    Returns:
        The verdict, whether the positive control was caught (None without a comparable one), and
        the reasons in words.
    """
    control = context.positive_control
    caught = None if control is None else control.caught(audit, context.canaries)
    if violated:
        return "violation", caught, "The certified lower bound lies above the epsilon that applies."
    bound = bound_for(context)
    reasons = _doubts(bound, ceiling_epsilon)
    if not detected:
        reasons += _untested(control is not None, caught)
    if reasons:
        return "inconclusive", caught, " ".join(reasons)
    return "consistent", caught, "The attack works and nothing that it found contradicts the claim."


def _doubts(bound: Bound, ceiling_epsilon: float) -> list[str]:
    """Return why no outcome could have contradicted the claim, if so."""
    if bound.epsilon is None:
        return [bound.note]
    if not ceiling_epsilon >= bound.epsilon / 2:
        reason = (
            f"Even a perfect attacker could certify at most epsilon {ceiling_epsilon:.2f} with "
            f"these canaries, less than half of {bound.epsilon:.2f}."
        )
        return [reason]
    return []


def _untested(exists: bool, caught: bool | None) -> list[str]:
    """Return why a null result would say little, if so."""
    if not exists:
        return ["There is no positive control, so the attack may simply be too weak."]
    if caught is None:
        return ["The positive control had other canaries and cannot be compared."]
    return [] if caught else ["The positive control was not caught: the attack is too weak."]
