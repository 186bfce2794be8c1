"""The release gate: an adapter leaves only with the audit report that it was let through by.

The gate reads and never attacks. It refuses an adapter without a report, one whose report belongs
to other weights or does not follow from its own evidence, and one with a violation. An
inconclusive report is let through with a warning. What was seen is recorded beside the weights and,
where the run's ledger is at hand, in the ledger's chain.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.adapters import MANIFEST, PEFT_CONFIG, WEIGHTS
from server.audit.verify import (
    SIGNATURE,
    Verification,
    read_report,
    read_signature,
    verify_report,
)
from shared.errors import AdapterCorrupt, ReleaseRefused
from shared.files import disk_errors, write_json

RELEASE = "release.json"
REPORT_COPY = "audit.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What the gate let through.

    Attributes:
        folder: the released adapter, with the report and ``release.json`` beside it.
        verdict: of the report that it saw.
        record: the contents of ``release.json``.
        warnings: what the person who releases should know.
    """

    folder: Path
    verdict: str
    record: Mapping[str, Any]
    warnings: tuple[str, ...]


def release_adapter(
    adapter: Path,
    report: Path,
    to: Path,
    *,
    trusted: str | None = None,
    note: Callable[[str], Mapping[str, Any]] | None = None,
) -> Released:
    """Let an adapter through the gate.

    Args:
        adapter: a PEFT folder with ``fedslm.json``.
        report: the audit report of exactly these weights.
        to: where the released adapter goes; must not hold another one.
        trusted: the public key that must have signed the report.
        note: writes the report's digest into the run's ledger, before anything is copied, and
            returns where it stands; whatever it raises stops the release.

    Returns:
        What was released.

    Raises:
        ReleaseRefused: for a violation, a report of other weights, or one that does not hold.
        AdapterCorrupt: if the adapter's files are missing or do not match its manifest.
        ReportInvalid: if there is no report, or it cannot be understood.
        RunFolderError: if ``to`` cannot be written.
    """
    weights = _weights_digest(adapter)
    found = read_report(report)
    verification = verify_report(
        found, signature=read_signature(report.with_name(SIGNATURE)), trusted=trusted
    )
    _refuse(found, verification, weights)
    _require_free(to, weights)
    record = {
        "schema": SCHEMA,
        "weights_sha256": weights,
        "audit_sha256": verification.sha256,
        "audit_verdict": verification.verdict,
        "audit_profile": found.get("profile"),
        "audit_signed_by": verification.signed_by,
        "epsilon_claimed": found.get("epsilon_claimed"),
        "delta": found.get("delta"),
        "unit": found.get("unit"),
        "neighboring_relation": found.get("neighboring_relation"),
        "mode": found.get("mode"),
        "ledger_note": None if note is None else dict(note(verification.sha256)),
    }
    _copy(adapter, report, to, record)
    return Released(
        folder=to,
        verdict=verification.verdict,
        record=record,
        warnings=_warnings(found, verification, noted=note is not None),
    )


def _refuse(report: Mapping[str, Any], verification: Verification, weights: str) -> None:
    """Raise if the report does not let these weights through."""
    name = weights[:12]
    subject = report.get("subject")
    audited = subject.get("weights_sha256") if isinstance(subject, Mapping) else None
    if audited != weights:
        msg = f"adapter {name}: the report is about adapter {str(audited)[:12]}."
        raise ReleaseRefused(msg, hint="Run `fedslm audit run` on this adapter.")
    if not verification.holds:
        msg = f"adapter {name}: its report does not hold: {verification.problems[0]}"
        raise ReleaseRefused(msg, hint="`fedslm audit verify` lists everything that is wrong.")
    if verification.verdict == "violation":
        msg = f"adapter {name}: verdict=violation, expected consistent or inconclusive."
        raise ReleaseRefused(msg, hint="The report's findings say what is broken; do not ship it.")


def _warnings(
    report: Mapping[str, Any], verification: Verification, *, noted: bool
) -> tuple[str, ...]:
    """Return what should be known before the adapter goes out."""
    found = []
    if verification.verdict == "inconclusive":
        names = [f["audit"] for f in report["findings"] if f["verdict"] == "inconclusive"]
        found.append(
            f"The audit is inconclusive ({', '.join(names) or 'nothing was run'}): it could not "
            "have shown a leak if there was one."
        )
    if report.get("epsilon_claimed") is None:
        found.append("The run claims no epsilon: nothing bounds what the adapter reveals.")
    if verification.signed_by is None:
        found.append("The report is not signed.")
    if not noted:
        found.append("No ledger was at hand: release.json alone says which report was seen.")
    return tuple(found)


def _weights_digest(adapter: Path) -> str:
    """Return the digest of an adapter's weights, and check it against the manifest."""
    try:
        digest = hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()
        manifest = json.loads((adapter / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{adapter.name}: {WEIGHTS} or {MANIFEST} is missing or damaged."
        raise AdapterCorrupt(msg, hint="Give the adapter folder of a finished run.") from error
    if not isinstance(manifest, dict) or manifest.get("weights_sha256") != digest:
        msg = f"{adapter.name}: the weights are not those that {MANIFEST} names."
        raise AdapterCorrupt(msg, hint="Copy the adapter again.")
    return digest


def _require_free(to: Path, weights: str) -> None:
    """Refuse a folder that holds another adapter, or a record that cannot be read."""
    if not (to / RELEASE).exists():
        return
    try:
        known = json.loads((to / RELEASE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or known.get("weights_sha256") != weights:
        msg = f"{to.name} holds another released adapter."
        raise ReleaseRefused(msg, hint="Choose another --to.")


def _copy(adapter: Path, report: Path, to: Path, record: Mapping[str, Any]) -> None:
    """Copy adapter and report, the record last: without it a folder was not let through."""
    with disk_errors(to):
        to.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, PEFT_CONFIG, MANIFEST):
            shutil.copyfile(adapter / name, to / name)
        shutil.copyfile(report, to / REPORT_COPY)
        signature = report.with_name(SIGNATURE)
        if signature.exists():
            shutil.copyfile(signature, to / SIGNATURE)
    write_json(to / RELEASE, dict(record))
