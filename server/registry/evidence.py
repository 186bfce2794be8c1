"""What an audit report says about an adapter that is added, and whether it may be added at all.

The report is concluded again from its own evidence, must be about exactly these weights, and must
not stand against them. A report that names no weights is no audit of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.crypto import Signature
from shared.documents import is_label
from shared.errors import AdapterCorrupt, InvalidValue, ReleaseRefused
from shared.manifest import RELEASE, REPORT_SIGNATURE, RUN_MANIFEST, Audited, Privacy

_WITHHOLD = "Keep it as evidence with withheld=True (fedslm adapter add --withheld)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known about an adapter.

    Attributes:
        audit: the report, or None without one about these weights.
        privacy: what is claimed.
    """

    audit: Audited | None
    privacy: Privacy


def examine(
    weights: str,
    *,
    report: Mapping[str, Any] | None,
    documents: Mapping[str, bytes],
    trusted: str | None,
    withheld: bool,
) -> Evidence:
    """Look at an adapter's papers.

    Args:
        weights: SHA-256 of the weights.
        report: the parsed audit report.
        documents: other JSON files of the adapter's folder, by name.
        trusted: the public key that must have signed the report; None accepts any and none.
        withheld: whether the adapter is to be kept as evidence alone.

    Returns:
        What goes into the manifest.

    Raises:
        ReleaseRefused: if a paper stands against the adapter, or is about another one.
        AdapterCorrupt: if the run's own manifest names other weights, or a paper is no JSON.
        ReportInvalid: if the report cannot be understood.
    """
    _check_run_manifest(weights, documents)
    audit = None
    if report is not None:
        audit = _audited(weights, report, documents, trusted=trusted, withheld=withheld)
    _check_release(weights, documents, audit, withheld=withheld)
    return Evidence(audit=audit, privacy=Privacy() if report is None else _privacy(report))


def _audited(
    weights: str,
    report: Mapping[str, Any],
    documents: Mapping[str, bytes],
    *,
    trusted: str | None,
    withheld: bool,
) -> Audited | None:
    """Conclude a report again and require that it lets these weights through."""
    from server.audit.verify import verify_report

    subject = report.get("subject")
    named = subject.get("weights_sha256") if isinstance(subject, Mapping) else None
    if named is None:
        return None
    if named != weights:
        _refuse(weights, "its audit report is about other weights", "Audit exactly this adapter.")
    checked = verify_report(report, signature=_signature(documents), trusted=trusted)
    if not checked.holds:
        found = f"its audit report does not hold: {checked.problems[0].rstrip('.')}"
        _refuse(weights, found, "fedslm audit verify lists everything that is wrong.")
    if checked.verdict == "violation" and not withheld:
        _refuse(weights, "verdict=violation, expected consistent or inconclusive", _WITHHOLD)
    profile = report.get("profile")
    return Audited(
        sha256=checked.sha256,
        verdict=checked.verdict,
        profile=profile if isinstance(profile, str) and is_label(profile) else None,
        signed_by=checked.signed_by,
    )


def _check_run_manifest(weights: str, documents: Mapping[str, bytes]) -> None:
    """Require that the run's manifest, if there is one, names these weights."""
    if RUN_MANIFEST not in documents:
        return
    named = _object(documents, RUN_MANIFEST).get("weights_sha256")
    if named is not None and named != weights:
        msg = f"adapter {weights[:12]}: {RUN_MANIFEST} names other weights."
        raise AdapterCorrupt(msg, hint="Copy the adapter again.")


def _check_release(
    weights: str, documents: Mapping[str, bytes], audit: Audited | None, *, withheld: bool
) -> None:
    """Require that the release gate's record, if there is one, agrees."""
    if RELEASE not in documents:
        return
    record = _object(documents, RELEASE)
    if record.get("weights_sha256") != weights:
        _refuse(weights, f"{RELEASE} is about other weights", "Release exactly this adapter.")
    if record.get("audit_verdict") == "violation" and not withheld:
        _refuse(weights, f"{RELEASE} says verdict=violation", _WITHHOLD)
    if audit is not None and record.get("audit_sha256") != audit.sha256:
        _refuse(weights, f"{RELEASE} names another audit report", "Release it again.")


def _signature(documents: Mapping[str, bytes]) -> Signature | None:
    """Return the report's signature, if there is one."""
    if REPORT_SIGNATURE not in documents:
        return None
    try:
        return Signature.from_dict(_object(documents, REPORT_SIGNATURE))
    except InvalidValue as error:
        msg = f"{REPORT_SIGNATURE} is no signature."
        raise AdapterCorrupt(msg) from error


def _privacy(report: Mapping[str, Any]) -> Privacy:
    """Return what a report says was claimed."""
    epsilon = report.get("epsilon_claimed")
    words = {name: report.get(name) for name in ("mode", "unit", "neighboring_relation")}
    return Privacy(
        epsilon=epsilon,
        delta=None if epsilon is None else report.get("delta"),
        **{name: None if value is None else str(value) for name, value in words.items()},
    )


def _object(documents: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
    """Parse a paper."""
    try:
        value = json.loads(documents[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{name} of an adapter is no JSON."
        raise AdapterCorrupt(msg) from error
    if not isinstance(value, dict):
        msg = f"{name} of an adapter is no JSON object."
        raise AdapterCorrupt(msg)
    return value


def _refuse(weights: str, found: str, hint: str) -> None:
    """Raise the refusal of an adapter."""
    msg = f"adapter {weights[:12]}: {found}."
    raise ReleaseRefused(msg, hint=hint)
