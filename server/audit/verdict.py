"""From a measurement to a verdict: which epsilon applies, and what a null result is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.audit.protocol import Claim, Terms, Verdict

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


def bound_for(claim: Claim, *, repeats: int) -> Bound:
    """Return the guarantee that covers all copies of one record canary.

    At client level all copies sit in one client, which is one unit, whatever their number. At
    example level every copy is a unit, and ``k`` copies are protected by group privacy alone:
    ``k epsilon`` and ``delta (e^(k epsilon) - 1) / (e^epsilon - 1)``.

    Args:
        claim: what the run says about itself.
        repeats: copies of the canary in its client's data.
    """
    epsilon, delta = claim.epsilon_applicable, claim.delta
    if claim.epsilon is None:
        return Bound(epsilon=None, delta=None, note="The run claims no epsilon.")
    if epsilon is None or delta is None:
        note = (
            "Nobody computed the epsilon that covers replacing what a canary replaces, so no bound "
            "can contradict the claim."
        )
        return Bound(epsilon=None, delta=None, note=note)
    if claim.unit == "client":
        note = (
            f"A canary changes the data of one client, so it is held against the epsilon "
            f"{epsilon:.3g} of replacing one client, with all {repeats} copies in it."
        )
        return Bound(epsilon=epsilon, delta=delta, note=note)
    if repeats == 1:
        note = f"A canary is one example, held against epsilon {epsilon:.3g}."
        return Bound(epsilon=epsilon, delta=delta, note=note)
    return _group(epsilon, delta, repeats)


def bound_for_client(claim: Claim) -> Bound:
    """Return the guarantee that covers a whole canary client: present or absent.

    That is the claim itself, under its own relation, where the unit is a client.
    """
    if claim.epsilon is None or claim.delta is None:
        return Bound(epsilon=None, delta=None, note="The run claims no epsilon.")
    if claim.unit != "client":
        note = "The claim protects one example, and a canary client is not one example."
        return Bound(epsilon=None, delta=None, note=note)
    note = f"A canary client is there or not, which is what epsilon {claim.epsilon:.3g} is about."
    return Bound(epsilon=claim.epsilon, delta=claim.delta, note=note)


def stated_delta(claim: Claim, bound: Bound) -> float:
    """Return the delta at which a lower bound is stated: what covers a canary, else the claim's.

    A run that claims nothing is judged at delta 0, where a lower bound means most.
    """
    if bound.delta is not None:
        return bound.delta
    return 0.0 if claim.delta is None else claim.delta


def judge(
    terms: Terms,
    *,
    bound: Bound,
    ceiling_epsilon: float | None,
    detected: bool,
    violated: bool = False,
) -> tuple[Verdict, str]:
    """Decide the verdict of an attack.

    Args:
        terms: claim and positive control.
        bound: the guarantee that the attack is held against.
        ceiling_epsilon: the largest epsilon that a perfect attacker could have certified; None for
            an attack that bounds no epsilon, which then needs a claim but no ceiling.
        detected: whether the attack worked here; then it needs no control to show that it can.
        violated: whether a lower bound lies above the epsilon that applies.

    Returns:
        The verdict and the reasons in words.
    """
    if violated:
        return "violation", "The lower bound lies above the epsilon that applies."
    reasons = _doubts(bound, ceiling_epsilon)
    if not detected:
        reasons += untested(terms)
    if reasons:
        return "inconclusive", " ".join(reasons)
    return "consistent", "Nothing that was found contradicts the claim."


def untested(terms: Terms) -> list[str]:
    """Return why a null result would say little, if so: no control, or one that was not caught."""
    control = terms.control
    if control is None:
        return ["There is no positive control, so the attack may simply be too weak."]
    if not control.comparable:
        return ["The positive control had other canaries and cannot be compared."]
    if control.detected is None:
        return [f"This audit could not be run on the positive control ({control.source})."]
    if not control.detected:
        return [f"The positive control was not caught ({control.source}): the attack is too weak."]
    return []


def _doubts(bound: Bound, ceiling_epsilon: float | None) -> list[str]:
    """Return why no outcome could have contradicted the claim, if so."""
    if bound.epsilon is None:
        return [bound.note]
    if ceiling_epsilon is not None and not ceiling_epsilon >= bound.epsilon / 2:
        reason = (
            f"Even a perfect attacker could certify at most epsilon {ceiling_epsilon:.2f} with "
            f"these canaries, less than half of {bound.epsilon:.2f}."
        )
        return [reason]
    return []


def _group(epsilon: float, delta: float, repeats: int) -> Bound:
    """Return the group-privacy guarantee of several copies of one example."""
    total = repeats * epsilon
    # log of delta * expm1(total) / expm1(epsilon); epsilon = 0 gives delta * repeats.
    growth = math.log(repeats) if epsilon == 0 else _log_expm1(total) - _log_expm1(epsilon)
    log_delta = math.log(delta) + growth
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
