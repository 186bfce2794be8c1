"""Writing into a run's ledger which audit report its release had seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.prepared import IDENTITY, open_ledger, run_name
from shared.configfile import parse_json
from shared.errors import RunFolderError, UsageError
from shared.privacy.ledger_notes import AUDIT_REPORT
from simulations.auditing.dossier import read_json_of
from simulations.budget_common import open_ledger as open_to_read
from simulations.runfolder import RunFolder
from simulations.scope import shared_scope


def ledger_note(
    run_dir: Path, *, ledger: str | None, key: Path | None, base_dir: Path
) -> Callable[[str], Mapping[str, Any]] | None:
    """Return what notes a report in the ledger of a run.

    Args:
        run_dir: a run folder, or an adapter's.
        ledger: the shared ledger that the run charged; the folder's own if not given.
        key: the file of the key that signs it.
        base_dir: what relative paths of the scenario are relative to.

    Returns:
        Writes a report's digest and tells where it stands; None for an adapter without a run.

    Raises:
        UsageError: for a ledger without a run to note it about, or that the run never charged.
        LedgerError: if there is no such ledger; none is made.
        RunFolderError: if the run folder does not say which run it is.
    """
    if not RunFolder(run_dir).ledger.is_file() and ledger is None:
        return None
    if not (run_dir / IDENTITY).is_file():
        msg = f"--ledger with {run_dir.name}, which is no run folder."
        raise UsageError(msg, hint="Give the folder of the run that charged this ledger.")
    try:
        config = parse_json(json.dumps(read_json_of(RunFolder(run_dir), IDENTITY)["config"]))
    except KeyError as error:
        msg = f"{run_dir.name}/{IDENTITY} lacks a scenario."
        raise RunFolderError(msg, hint="Copy the whole run folder again.") from error
    scope = config.data.path if ledger is None else shared_scope(config.data.path, base_dir)
    run_id = run_name(config)
    with open_to_read(ledger or str(run_dir)) as known:
        if not known.notes(run_id) and known.first_charge(run_id) is None:
            msg = f"the ledger does not know run {run_id}."
            raise UsageError(msg, hint="Name the ledger that it charged, or leave --ledger out.")

    def write(digest: str) -> Mapping[str, Any]:
        with open_ledger(run_dir, where=ledger, key=key) as opened:
            said = opened.note(run_id, scope, AUDIT_REPORT, digest)
        return {"run_id": said.run_id, "seq": said.seq, "time": said.time}

    return write
