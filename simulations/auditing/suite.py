"""Attack a run with the audits of a profile, and write the signed report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.audit.canaries import PlantedCanaries
from server.audit.catalog import AUDITS, PROFILES
from server.audit.protocol import AuditContext, Control, Effort
from server.audit.report import AuditReport
from server.audit.run import run_audits
from server.audit.target import KnownBase, Target
from server.audit.verify import SIGNATURE, sign_report
from shared.crypto import SigningKey, user_key
from shared.errors import UsageError
from shared.files import write_json
from simulations.auditing.controls import ControlsElsewhere, leak_controls
from simulations.runfolder import AUDIT
from simulations.workers import processes_for

if TYPE_CHECKING:
    from simulations.auditing.dossier import Dossier
    from simulations.auditing.show import AuditProgress

CONTROL_FOLDER = "control"
KEY_NAME = "audit"
NEED_CONTROL = ("one-run", "exposure", "membership", "extraction")
"""Attacks on canaries; the other audits carry their positive control inside."""

EFFORTS: dict[str, Effort] = {"smoke": "smoke", "release": "release", "extended": "extended"}
PACKAGES = ("fedslm", "numpy", "scipy", "torch", "transformers", "peft", "dp-accounting")


MakeControls = Callable[["Dossier", AuditContext, Sequence[str]], Mapping[str, Control]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What came of auditing.

    Attributes:
        report: the contents of ``audit.json``.
        folder: where report, signature and page are.
    """

    report: dict[str, Any]
    folder: Path


def chosen(profile: str, only: Sequence[str]) -> tuple[str, ...]:
    """Return which audits to run.

    Raises:
        UsageError: for a profile that there is not.
        InvalidValue: for an audit that there is not; names the nearest.
    """
    if profile not in EFFORTS:
        msg = f"--profile {profile}, expected one of: {', '.join(EFFORTS)}."
        raise UsageError(msg)
    for name in only:
        AUDITS.get(name)
    return tuple(dict.fromkeys(only)) or PROFILES.get(profile)


def audit_dossier(
    dossier: Dossier,
    names: Sequence[str],
    *,
    profile: str,
    controls: MakeControls,
    progress: AuditProgress,
    extra: Sequence[object] = (),
) -> AuditReport:
    """Attack a run.

    Args:
        dossier: the run, open.
        names: which audits.
        profile: how hard they try.
        controls: makes the positive controls.
        progress: is told what happens.
        extra: further artefacts.
    """
    from simulations.auditing.artefacts import context_of, subject_of

    context = context_of(dossier, EFFORTS[profile], extra=extra)
    context = context.plus(KnownBase(context.need(Target)))
    progress.expect(len(names))
    with ExitStack() as stack:
        made = controls(dossier, context, names)
        if isinstance(made, ControlsElsewhere):
            stack.callback(made.close)
        return run_audits(
            context,
            names,
            profile=profile,
            controls=made,
            last=NEED_CONTROL,
            subject={**subject_of(dossier), "versions": versions()},
            announce=progress.starts,
            done=progress.ends,
        )


def write_audit(report: AuditReport, folder: Path, *, key: SigningKey) -> Audited:
    """Write report, signature and page; the same findings give the same bytes.

    Raises:
        OutOfDisk: if there is no space; an older report stays whole.
    """
    from simulations.auditing.page import write_page
    from simulations.report import write_report
    from simulations.runfolder import SUMMARY

    found = report.to_dict()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / AUDIT, found)
    write_json(folder / SIGNATURE, sign_report(found, key).to_dict())
    write_page(folder)
    if (folder / SUMMARY).exists():
        write_report(folder)
    return Audited(report=found, folder=folder)


def audit_key() -> Path:
    """Return the file of the key that signs reports: FEDSLM_AUDIT_KEY, or the person's own."""
    given = os.environ.get("FEDSLM_AUDIT_KEY")
    return Path(given) if given else user_key(KEY_NAME)


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    """Yield the installed ones of :data:`PACKAGES`."""
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def no_control(
    dossier: Dossier, context: AuditContext, names: Sequence[str]
) -> Mapping[str, Control]:
    """Make no control: null results will be inconclusive."""
    del dossier, context, names
    return {}


def leak_control(
    dossier: Dossier, context: AuditContext, names: Sequence[str]
) -> Mapping[str, Control]:
    """Make the adapter memorise the included canaries, and attack that."""
    attacks = [name for name in names if name in NEED_CONTROL]
    if context.find(PlantedCanaries) is None or not attacks:
        return {}
    examples = dossier.included_examples()
    if not examples:
        return {}
    model = dossier.assembly.model

    def make() -> Mapping[str, Control]:
        return leak_controls(context, model, examples, attacks, seed=context.seed)

    if processes_for(dossier.assembly.runtime) == 1:
        return make()
    try:
        return ControlsElsewhere(attacks, make)
    except OSError:  # no further process: the same controls, made before the audits
        return make()
