"""Run the audits of a profile on one adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from server.audit.canaries import PlantedCanaries
from server.audit.catalog import AUDITS
from server.audit.protocol import Audit, AuditContext, Control, Evidence, Finding, Terms
from server.audit.report import AuditReport
from server.audit.target import CachedTarget, Target
from shared.errors import AuditError


def run_audits(
    context: AuditContext,
    names: Sequence[str],
    *,
    profile: str,
    controls: Mapping[str, Control] | None = None,
    last: Collection[str] = (),
    subject: Mapping[str, object] | None = None,
    announce: Callable[[str, str], None] | None = None,
    done: Callable[[Finding], None] | None = None,
) -> AuditReport:
    """Attack an adapter with some audits.

    Each text is read once, whatever the number of audits. An audit that cannot be run, for want of
    an artefact or of canaries, yields an ``inconclusive`` finding that says so.

    Args:
        context: the artefacts and the claim.
        names: which audits, in order.
        profile: what to call the choice in the report.
        controls: the same audits where they must succeed, by audit; asked for one audit at a time,
            when it has been run.
        last: audits to run after the others; the report keeps the order of ``names``.
        subject: what is audited, for the report.
        announce: called with the name and the cost of each audit before it starts.
        done: called with each finding.

    Returns:
        The report; inconclusive without audits.

    Raises:
        InvalidValue: for an unknown audit.
    """
    known: Mapping[str, Control] = {} if controls is None else controls
    target = context.find(Target)
    if target is not None:
        context = context.plus(CachedTarget(target))
    audits = {name: AUDITS.get(name) for name in names}
    found: dict[str, Finding] = {}
    for audit in [audits[name] for name in sorted(audits, key=lambda name: name in last)]:
        if announce is not None:
            announce(audit.name, audit.cost(context))
        terms = Terms(claim=context.claim, seed=context.seed, control=known.get(audit.name))
        found[audit.name] = attempt(audit, context, terms)
        if done is not None:
            done(found[audit.name])
    findings = [found[name] for name in names]
    planted = context.find(PlantedCanaries)
    return AuditReport(
        claim=context.claim,
        findings=tuple(findings),
        canaries={} if planted is None else planted.to_dict(),
        profile=profile,
        seed=context.seed,
        controls={
            finding.audit: known[finding.audit] for finding in findings if finding.audit in known
        },
        subject=subject or {},
    )


def attempt(audit: Audit, context: AuditContext, terms: Terms) -> Finding:
    """Run one audit; turn a refusal into an inconclusive finding."""
    try:
        return audit.conclude(audit.measure(context), terms)
    except AuditError as error:
        return not_run(audit, {"error": error.code, "reason": str(error)}, terms)


def conclude_again(finding: Mapping[str, object], terms: Terms) -> Finding:
    """Conclude a stored finding again from its evidence alone.

    Raises:
        InvalidValue: for an unknown audit.
        AuditError: if the evidence is malformed.
    """
    audit = AUDITS.get(str(finding.get("audit")))
    evidence = finding.get("evidence")
    if not isinstance(evidence, Mapping):
        msg = f"finding {audit.name} has no evidence."
        raise AuditError(msg)
    if "error" in evidence:
        return not_run(audit, evidence, terms)
    return audit.conclude(evidence, terms)


def not_run(audit: Audit, evidence: Evidence, terms: Terms) -> Finding:
    """Return the finding of an audit that could not be run."""
    return Finding(
        audit=audit.name,
        verdict="inconclusive",
        strength="descriptive",
        metric=audit.metric,
        value=None,
        interval=None,
        ceiling=None,
        baseline=None,
        detected=None,
        n_in=0,
        n_out=0,
        alpha=terms.alpha,
        positive_control=None,
        explanation=f"This audit could not be run. {evidence.get('reason', '')}".strip(),
        evidence=dict(evidence),
    )
