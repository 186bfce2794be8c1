"""A run that was prepared on disk, for a ServerApp that Flower starts in a process of its own.

``run.json`` in a run folder holds the scenario, the plan, the adapter's shapes and the population;
:func:`open_prepared` goes on from the folder's checkpoint with the folder's ledger. What is left to
do after the rounds (adapter, audit, report) is ``fedslm simulate --resume`` on the same folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.budget import RunBudget
from server.metricslines import METRICS as METRICS
from server.metricslines import read_metrics as read_metrics
from server.setup import NodeDirectory, RunSetup
from server.strategy import FederatedRun
from server.warmstart import read_start
from shared.attackrules import refuse_attack
from shared.config import RunConfig
from shared.configfile import parse_json
from shared.errors import NotResumable, UsageError
from shared.files import append_line, write_text
from shared.lora import AdapterSpec, Vector
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.plan import PrivacyPlan
from shared.privacy.secagg.keys import Roster
from shared.roster import read_roster

IDENTITY = "run.json"
LEDGER = "ledger.sqlite"
LEDGER_KEY = "ledger.key"
ROSTER = "roster.json"
WARM_START = "warm_start"

logger = logging.getLogger("fedslm.server")


def describe_run(
    config: RunConfig,
    plan: PrivacyPlan,
    spec: AdapterSpec,
    population: int,
    *,
    start_digest: str | None = None,
) -> dict[str, Any]:
    """Return the contents of ``run.json``; ``start_digest`` is that of a kept warm start."""
    started = {} if start_digest is None else {WARM_START: start_digest}
    return {
        **started,
        "config_digest": config.digest(),
        "config": config.model_dump(mode="json"),
        "plan": plan.to_json(),
        "spec": spec.to_json(),
        "population": population,
    }


def run_name(config: RunConfig) -> str:
    """Return how the ledger names a run of this scenario."""
    return f"{config.run.name}-{config.digest()[:12]}"


def read_setup(folder: Path) -> RunSetup:
    """Read a prepared run.

    Raises:
        NotResumable: if ``run.json`` is missing or damaged.
        ConflictingSettings: if its scenario simulates attackers.
    """
    try:
        data = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
        config = parse_json(json.dumps(data["config"]))
        plan = PrivacyPlan.from_json(data["plan"])
        spec = AdapterSpec.from_json(data["spec"])
        population = int(data["population"])
        start = data.get(WARM_START)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{IDENTITY} is missing or damaged."
        raise NotResumable(msg, hint="Prepare the run again in another folder.") from error
    refuse_attack(config)
    return RunSetup(
        run_id=run_name(config),
        config=config,
        plan=plan,
        spec=spec,
        population=population,
        folder=folder,
        roster=_roster(folder) if plan.distributed is not None else None,
        start=_start(folder, config, spec, start),
    )


def _start(folder: Path, config: RunConfig, spec: AdapterSpec, digest: object) -> Vector | None:
    """Read the earlier adapter that a run goes on from, if it does.

    Raises:
        NotResumable: if it is not the one that the run began with.
    """
    if digest is None and config.run.warm_start is None:
        return None
    return read_start(folder, size=spec.size(config.trained_kinds), digest=digest).vector


def _roster(folder: Path) -> Roster:
    """Read the identity keys of all clients.

    Raises:
        NotResumable: if there is no file of them.
        SchemaMismatch: if it is not a roster.
    """
    try:
        return read_roster((folder / ROSTER).read_bytes())
    except OSError as error:
        msg = f"{ROSTER} is missing: mode client-distributed needs the clients' identity keys."
        raise NotResumable(msg, hint="Collect them with: fedslm client identity.") from error


def settle_metrics(folder: Path, finished_rounds: int, last_record: Mapping[str, Any]) -> None:
    """Make the metrics agree with the checkpoint after a crash.

    Rounds after the checkpoint are dropped; the checkpoint's own round is added if the process
    died between the two writes.
    """
    records = [r for r in read_metrics(folder) if int(r["round"]) <= finished_rounds]
    if finished_rounds > 0 and (not records or records[-1]["round"] != finished_rounds):
        records.append(dict(last_record))
    text = "".join(json.dumps(r, sort_keys=True) + "\n" for r in records)
    write_text(folder / METRICS, text)


class FolderObserver:
    """Writes a metrics line a round and logs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def started(self, server_round: int, cohort: int) -> None:
        """Log the round."""
        logger.info("round %d: %d clients", server_round, cohort)

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Say nothing."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Append the metrics line."""
        append_line(self._folder / METRICS, json.dumps(record, sort_keys=True))


def open_ledger(folder: Path, *, where: str | None = None, key: Path | None = None) -> Ledger:
    """Open the ledger of a run for writing, with the key that signs its end.

    Args:
        folder: the run folder, which has a ledger and a key of its own.
        where: a ledger that several runs share: a file, or the URL of a PostgreSQL database.
        key: the file of its key, created if missing; by default beside the ledger's file.

    Raises:
        UsageError: for a URL without a key.
        LedgerError: if ledger or key cannot be used.
    """
    path = key_of_ledger(where, key) or folder / LEDGER_KEY
    signer = LedgerSigner.load_or_create(path)
    return Ledger(folder / LEDGER if where is None else where, signer=signer)


def key_of_ledger(where: str | None, key: Path | None) -> Path | None:
    """Return where the key of a shared ledger is; None for the run folder's own ledger and key.

    Raises:
        UsageError: for a URL without a key.
    """
    if key is not None or where is None:
        return key
    if "://" in where:
        msg = "a ledger in a database has no folder for its key."
        raise UsageError(msg, hint="Say where the key is: --ledger-key FILE.")
    return Path(where).with_suffix(".key")


@contextmanager
def open_prepared(
    folder: Path,
    *,
    ledger: str | None = None,
    ledger_key: Path | None = None,
    directory: NodeDirectory | None = None,
) -> Iterator[FederatedRun]:
    """Open the run of a folder with its ledger, at its checkpoint.

    Args:
        folder: the run folder; in mode client-distributed with the clients' ``roster.json``.
        ledger: a ledger that several runs share; the folder's own if not given.
        ledger_key: the file of its key.
        directory: of a fleet, where enrolment says which client a node speaks for.

    Raises:
        NotResumable: if the folder holds no prepared run.
        LedgerError: if its ledger cannot be used.
    """
    setup = read_setup(folder)
    with open_ledger(folder, where=ledger, key=ledger_key) as opened:
        scope = setup.config.data.path
        budget = RunBudget(opened, plan=setup.plan, run_id=setup.run_id, scope=scope)
        observer = FolderObserver(folder)
        run = FederatedRun(setup, budget=budget, observer=observer, directory=directory)
        if run.restore():
            settle_metrics(folder, run.finished_rounds, run.last_record)
        yield run
