"""The report of an audit suite and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.audit.protocol import Claim, Control, Finding, Verdict

SCHEMA = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What all audits of one adapter found.

    Args:
        claim: what was claimed.
        findings: one finding for each audit that was asked for.
        canaries: counts, commitment and revealed coins; no text.
        profile: which audits were asked for.
        seed: seed of everything that audits drew.
        controls: the positive control of each audit that had one, by audit.
        subject: digests of what was audited (adapter, base, scenario, plan, ledger head), the
            versions of the packages, and how long it took.
    """

    claim: Claim
    findings: tuple[Finding, ...]
    canaries: Mapping[str, object]
    profile: str
    seed: int
    controls: Mapping[str, Control] = field(default_factory=dict)
    subject: Mapping[str, object] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The strictest verdict that the findings support; no findings are inconclusive."""
        return overall([finding.verdict for finding in self.findings])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that ``audit.json`` holds."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "profile": self.profile,
            "seed": self.seed,
            **self.claim.to_dict(),
            "findings": [finding.to_dict() for finding in self.findings],
            "controls": {name: control.to_dict() for name, control in self.controls.items()},
            "canaries": dict(self.canaries),
            "subject": dict(self.subject),
        }


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of a suite: violation if any is, consistent only if all are."""
    if "violation" in verdicts:
        return "violation"
    return "consistent" if set(verdicts) == {"consistent"} else "inconclusive"
