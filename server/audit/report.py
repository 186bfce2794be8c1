"""The report of an audit suite and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.audit.protocol import Claim, Finding, Verdict

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What all audits of one adapter found.

    Args:
        claim: what was claimed.
        findings: one finding for each audit that was asked for.
        canaries: counts and commitment of the canaries, no text.
        profile: which audits were asked for.
        control: where the positive control comes from; None without one.
    """

    claim: Claim
    findings: tuple[Finding, ...]
    canaries: Mapping[str, object]
    profile: str
    control: str | None = None

    @property
    def verdict(self) -> Verdict:
        """The strictest verdict that the findings support; no findings are inconclusive."""
        verdicts = {finding.verdict for finding in self.findings}
        if "violation" in verdicts:
            return "violation"
        return "consistent" if verdicts == {"consistent"} else "inconclusive"

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form that ``audit.json`` holds."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "profile": self.profile,
            **self.claim.to_dict(),
            "commitment": self.canaries.get("commitment"),
            "positive_control": self.control,
            "findings": [finding.to_dict() for finding in self.findings],
            "canaries": dict(self.canaries),
        }
