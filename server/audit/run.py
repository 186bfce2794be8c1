"""Run the audits of a profile on one adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from server.audit.exposure import Exposure
from server.audit.membership import Membership
from server.audit.onerun import OneRun
from server.audit.protocol import Audit, AuditContext, CachedScorer, Finding
from server.audit.report import AuditReport
from shared.errors import AuditError
from shared.registry import Registry

AUDITS: Registry[Audit] = Registry("audit")
AUDITS.add("exposure", Exposure())
AUDITS.add("membership", Membership())
AUDITS.add("one-run", OneRun())

PROFILES: Registry[tuple[str, ...]] = Registry("audit profile")
PROFILES.add("none", ())
PROFILES.add("smoke", ("exposure", "membership", "one-run"))


def run_audits(
    context: AuditContext,
    profile: str,
    *,
    announce: Callable[[str, str], None] | None = None,
) -> AuditReport:
    """Attack an adapter with every audit of a profile.

    Each text is read once, whatever the number of audits. An audit that cannot be run, for want of
    canaries or because the losses are not finite, yields an ``inconclusive`` finding that says so.

    Args:
        context: the model, its canaries and its claim.
        profile: ``"none"`` or ``"smoke"``.
        announce: called with the name and the cost of each audit before it starts.

    Returns:
        The report; inconclusive without audits.

    Raises:
        InvalidValue: for an unknown profile.
    """
    shared = replace(context, scorer=CachedScorer(context.scorer))
    findings = []
    for name in PROFILES.get(profile):
        audit = AUDITS.get(name)
        if announce is not None:
            announce(name, audit.cost(context.canaries))
        findings.append(_attempt(audit, shared))
    control = context.positive_control
    return AuditReport(
        claim=context.claim,
        findings=tuple(findings),
        canaries=context.canaries.to_dict(),
        profile=profile,
        control=None if control is None else control.source,
    )


def _attempt(audit: Audit, context: AuditContext) -> Finding:
    """Run one audit; turn a refusal into a finding."""
    try:
        return audit.run(context)
    except AuditError as error:
        return Finding(
            audit=audit.name,
            verdict="inconclusive",
            metric=audit.metric,
            value=None,
            interval=None,
            ceiling=None,
            baseline=None,
            detected=None,
            n_in=len(context.canaries.included),
            n_out=len(context.canaries.held_out),
            alpha=context.alpha,
            positive_control=None,
            explanation=f"This audit could not be run. {error}",
            details={"error": error.code},
        )
