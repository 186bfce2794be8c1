"""``fedslm audit run``, without the command line: from a request to a signed report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.audit.canaries import PlantedCanaries
from server.audit.protocol import AuditContext, Control
from server.audit.queryprivacy import QueryPrivacy
from server.audit.report import AuditReport
from server.audit.run import run_audits
from server.audit.verify import read_report
from shared.crypto import SigningKey
from shared.errors import UsageError
from shared.files import write_json
from simulations.auditing.controls import LEAK, TWIN, controls_from
from simulations.auditing.dossier import Dossier, open_dossier
from simulations.auditing.elsewhere import context_of_external
from simulations.auditing.queryinputs import query_artefacts
from simulations.auditing.show import Silent
from simulations.auditing.suite import (
    EFFORTS,
    NEED_CONTROL,
    Audited,
    audit_dossier,
    audit_key,
    chosen,
    leak_control,
    no_control,
    versions,
    write_audit,
)
from simulations.runfolder import AUDIT
from simulations.twin import train_twin

if TYPE_CHECKING:
    from simulations.auditing.request import Request
    from simulations.auditing.show import AuditProgress

CONTROL_FOLDER = "control"


def audit(request: Request, *, progress: AuditProgress, base_dir: Path | None = None) -> Audited:
    """Do what ``fedslm audit run`` was asked for.

    Args:
        request: the arguments.
        progress: is told what happens.
        base_dir: what relative paths of a scenario are relative to; default the working directory.

    Raises:
        FedSLMError: any error of the tree; see docs/errors.md.
    """
    names = chosen(request.profile, request.only)
    key = SigningKey.load_or_create(request.key or audit_key())
    home = base_dir or Path.cwd()
    if request.run_dir is None:
        report, folder = _external(request, names, progress)
    else:
        report, folder = _run(request, names, progress, home)
    return write_audit(report, folder, key=key)


def _run(
    request: Request, names: Sequence[str], progress: AuditProgress, home: Path
) -> tuple[AuditReport, Path]:
    """Audit a finished run."""
    run_dir = request.run_dir or home
    progress.note(f"opening {run_dir.name}")
    with open_dossier(run_dir, base_dir=home, ledger=request.ledger) as dossier:
        report = audit_dossier(
            dossier,
            names,
            profile=request.profile,
            controls=_Controls(request, progress, home),
            progress=progress,
            extra=_given(request, names),
        )
    return report, request.out or run_dir


def _external(
    request: Request, names: Sequence[str], progress: AuditProgress
) -> tuple[AuditReport, Path]:
    """Audit an adapter from elsewhere."""
    if request.adapter is None or request.base is None:
        msg = "Give --adapter and --base."
        raise UsageError(msg)
    progress.note(f"loading {request.adapter.name} on {request.base}")
    context, subject = context_of_external(
        request, EFFORTS[request.profile], _given(request, names)
    )
    controls: Mapping[str, Control] = {}
    if request.control_or_default != "none":
        source = Path(request.control_or_default)
        controls = controls_from(read_report(source / AUDIT), source=source.name, canaries={})
    progress.expect(len(names))
    report = run_audits(
        context,
        names,
        profile=request.profile,
        controls=controls,
        subject={**subject, "versions": versions()},
        announce=progress.starts,
        done=progress.ends,
    )
    return report, request.out or Path.cwd() / f"{request.adapter.name}-audit"


def _given(request: Request, names: Sequence[str]) -> list[object]:
    """Read the user's own prompts, attacks and queries, else the embedded queries."""
    from server.audit.promptleak.plan import GivenAttacks
    from server.audit.promptleak.prompts import ServedPrompts
    from server.audit.promptleak.sets import load_attacks, load_prompts

    found: list[object] = []
    if request.prompts is not None:
        found.append(ServedPrompts(prompts=load_prompts(request.prompts), protected=True))
    if QueryPrivacy.name in names:  # the redactor takes seconds to load
        found += query_artefacts(request.queries)
    if request.attacks is not None:
        found.append(GivenAttacks(attacks=load_attacks(request.attacks)))
    return found


class _Controls:
    """Makes the positive control that was asked for."""

    def __init__(self, request: Request, progress: AuditProgress, home: Path) -> None:
        self._request, self._progress, self._home = request, progress, home

    def __call__(
        self, dossier: Dossier, context: AuditContext, names: Sequence[str]
    ) -> Mapping[str, Control]:
        """Make it, and attack it."""
        control = self._request.control_or_default
        if control == "none":
            return no_control(dossier, context, names)
        if control == "leak":
            self._progress.note(LEAK)
            return leak_control(dossier, context, names)
        folder = Path(control)
        if control == "twin":
            folder = dossier.folder.path / CONTROL_FOLDER
            self._twin(dossier, folder, names)
        planted = context.find(PlantedCanaries)
        return controls_from(
            read_report(folder / AUDIT),
            source=TWIN if control == "twin" else folder.name,
            canaries={} if planted is None else planted.to_dict(),
        )

    def _twin(self, dossier: Dossier, folder: Path, names: Sequence[str]) -> None:
        """Train the twin and attack it, as far as that was not done already."""
        self._progress.note(f"training {TWIN}")
        run_dir = dossier.folder.path
        train_twin(run_dir, folder, base_dir=self._home, note=self._progress.note)
        attacks = tuple(name for name in names if name in NEED_CONTROL)
        self._progress.note(f"attacking {TWIN}")
        _audit_twin(folder, attacks, profile=self._request.profile, base_dir=self._home)


def _audit_twin(folder: Path, names: Sequence[str], *, profile: str, base_dir: Path) -> None:
    """Attack the twin, unless that was done already with as many audits and as much effort."""
    from simulations.auditing.dossier import open_dossier

    if (folder / AUDIT).exists():
        known = read_report(folder / AUDIT)
        done = {str(finding["audit"]) for finding in known["findings"]}
        if known["profile"] == profile and done >= set(names):
            return
    with open_dossier(folder, base_dir=base_dir) as twin:
        report = audit_dossier(
            twin,
            names,
            profile=profile,
            controls=no_control,
            progress=Silent(),
        )
    write_json(folder / AUDIT, report.to_dict())
