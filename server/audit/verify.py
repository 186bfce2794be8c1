"""Check an audit report without the model: does it follow from its own evidence, who signed it.

A report is verified by concluding every finding again from the evidence that stands in it. That
shows that bounds, p-values and verdicts are what the evidence gives, not that the evidence is
true: for that, look at who signed it, or run the audits again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.audit.commitment import tally, verify_commitment
from server.audit.protocol import ALPHA, VERDICTS, Claim, Control, Terms, Verdict
from server.audit.report import SCHEMA, overall
from server.audit.run import conclude_again
from shared.canonical import canonical_json, sha256_hex
from shared.crypto import Signature, SigningKey
from shared.errors import AuditError, FedSLMError, InvalidValue, ReportInvalid

DOMAIN = "fedslm-audit-report-v1"
SIGNATURE = "audit.sig.json"
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What came out of checking a report.

    Attributes:
        verdict: the report's verdict, concluded again.
        concluded: audits whose finding follows from its evidence.
        problems: what does not hold, one sentence each; empty if all does.
        signed_by: public key of a signature that holds; None without one.
        sha256: digest of the report's canonical form, which is what is signed.
    """

    verdict: str
    concluded: tuple[str, ...]
    problems: tuple[str, ...]
    signed_by: str | None
    sha256: str

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def read_report(path: Path) -> dict[str, Any]:
    """Read a report file.

    Raises:
        ReportInvalid: if it is missing, not JSON, or of another schema.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path.name} cannot be read as JSON."
        raise ReportInvalid(msg, hint="Give an audit.json, or the run folder it is in.") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        found = report.get("schema") if isinstance(report, dict) else type(report).__name__
        msg = f"{path.name}: schema={found!r}, expected an audit report of schema {SCHEMA}."
        raise ReportInvalid(msg, hint="Run `fedslm audit run` again to get a report of this form.")
    return report


def digest_of(report: Mapping[str, Any]) -> str:
    """Return the digest of a report's canonical form: layout does not matter, content does.

    Raises:
        ReportInvalid: if it holds what JSON cannot hold.
    """
    try:
        return sha256_hex(canonical_json(dict(report)))
    except InvalidValue as error:
        msg = "the report holds a number that is not finite."
        raise ReportInvalid(msg) from error


def sign_report(report: Mapping[str, Any], key: SigningKey) -> Signature:
    """Sign a report."""
    return key.sign(DOMAIN, digest_of(report))


def read_signature(path: Path) -> Signature | None:
    """Return the signature beside a report, or None if there is none.

    Raises:
        ReportInvalid: if the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return Signature.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, InvalidValue) as error:
        msg = f"{path.name} is not a signature."
        raise ReportInvalid(msg) from error


def verify_report(
    report: Mapping[str, Any],
    *,
    signature: Signature | None = None,
    trusted: str | None = None,
) -> Verification:
    """Check a report against its own evidence and its signature.

    Args:
        report: the parsed ``audit.json``.
        signature: the detached signature, if there is one.
        trusted: the public key that must have signed it.

    Returns:
        What holds and what does not; nothing is raised for a report that does not hold.

    Raises:
        ReportInvalid: if the report cannot be understood at all.
    """
    digest = digest_of(report)
    terms = _terms(report)
    unopened = _commitment_problem(report)
    unsigned = list(_signature_problems(digest, signature, trusted))
    problems = [*unsigned, *unopened]
    concluded: list[str] = []
    verdicts: list[Verdict] = []
    for stored in _findings(report):
        name = str(stored.get("audit"))
        differences = list(_differences(stored, terms))
        verdicts += [verdict for verdict in VERDICTS if verdict == stored.get("verdict")]
        if differences:
            problems += [f"{name}: {difference}" for difference in differences]
        else:
            concluded.append(name)
    verdict = overall(verdicts)
    if report.get("verdict") != verdict:
        problems.append(f"verdict={report.get('verdict')!r}, the findings give {verdict!r}.")
    return Verification(
        verdict=verdict,
        concluded=tuple(concluded),
        problems=tuple(problems),
        signed_by=None if signature is None or unsigned else signature.public_key,
        sha256=digest,
    )


def _commitment_problem(report: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the canaries' commitment and its opening."""
    canaries = report.get("canaries")
    if not isinstance(canaries, Mapping) or not canaries.get("opening"):
        return []
    opening, kinds = canaries["opening"], canaries.get("kinds", ())
    try:
        if not verify_commitment(opening, str(canaries.get("commitment"))):
            return ["the revealed coins are not the ones that were committed to."]
        counted = {
            str(kind["kind"]): (int(kind["included"]), int(kind["held_out"])) for kind in kinds
        }
        if counted != tally(opening):
            return ["the canaries that were scored are not those of the commitment."]
    except (AuditError, KeyError, TypeError, ValueError):
        return ["the opening of the canaries' commitment is malformed."]
    return []


def _terms(report: Mapping[str, Any]) -> dict[str, Terms]:
    """Return the terms of each audit of a report."""
    try:
        claim = Claim.from_dict(report)
        seed = int(report["seed"])
        controls = {
            str(name): Control.from_dict(control)
            for name, control in dict(report["controls"]).items()
        }
        audits = [str(finding["audit"]) for finding in report["findings"]]
        alphas = {str(f["audit"]): float(f.get("alpha", ALPHA)) for f in report["findings"]}
        return {
            name: Terms(claim=claim, seed=seed, alpha=alphas[name], control=controls.get(name))
            for name in audits
        }
    except (KeyError, TypeError, ValueError, FedSLMError) as error:
        msg = "the report lacks its claim, seed, controls or findings."
        raise ReportInvalid(msg, hint="Ask for the original report.") from error


def _findings(report: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the stored findings."""
    found = report["findings"]
    if not all(isinstance(finding, Mapping) for finding in found):
        msg = "a finding of the report is not an object."
        raise ReportInvalid(msg)
    return list(found)


def _differences(stored: Mapping[str, Any], terms: Mapping[str, Terms]) -> Iterator[str]:
    """Yield what a stored finding says and its evidence does not give."""
    try:
        again = conclude_again(stored, terms[str(stored["audit"])]).to_dict()
    except FedSLMError as error:
        yield f"cannot be concluded again. {error.message}"
        return
    for key in sorted({*again, *stored}):
        if key not in again or key not in stored:
            yield f"{key} is in only one of report and conclusion."
        elif not _same(stored[key], json.loads(json.dumps(again[key]))):
            yield f"{key} in the report is not what its evidence gives{_shown(stored, again, key)}."


def _shown(stored: Mapping[str, Any], again: Mapping[str, Any], key: str) -> str:
    """Return both values where they are short."""
    if isinstance(stored[key], dict | list) or isinstance(again[key], dict | list):
        return ""
    return f" ({stored[key]!r} against {again[key]!r})" if key != "explanation" else ""


def _same(one: object, other: object) -> bool:
    """Compare JSON values, numbers to 1e-9 of their size."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _signature_problems(
    digest: str, signature: Signature | None, trusted: str | None
) -> Iterator[str]:
    """Yield what is wrong with a signature."""
    if signature is None:
        if trusted is not None:
            yield f"there is no signature, expected one of key {trusted[:12]}."
        return
    if signature.domain != DOMAIN or signature.sha256 != digest:
        yield "the signature belongs to another report."
    elif not signature.holds():
        yield f"the signature of key {signature.public_key[:12]} does not hold."
    if trusted is not None and signature.public_key != trusted:
        yield f"signed by key {signature.public_key[:12]}, expected {trusted[:12]}."
