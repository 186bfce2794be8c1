"""The end of a run on nodes whose records lie on this machine: as a simulation ends.

The server of a real fleet has no data and measures nothing. ``fedslm up`` dealt the records itself,
so it may measure before and after, attack the adapter, and leave the run folder of a simulation.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from client.app import make_client_app
from server.budget import RunBudget
from server.home import ServerHome
from server.prepared import FolderObserver, read_setup
from server.registry import AdapterVersion, add_run
from server.registry.opening import server_registry
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.files import disk_errors
from shared.lora import Vector
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from simulations.assemble import Assembly, assemble_runtime
from simulations.engine import InProcessGrid
from simulations.finish import Outcome, finish_run
from simulations.runfolder import EVALUATION, SUMMARY, RunFolder, open_folder
from simulations.updeal import DealtDataset

# What the fleet's own run folder has and a simulation's has not, or what is written anew here.
_FLEETS_OWN = (
    "order.json",
    "fleet.json",
    "outcome.json",
    "underway.json",
    ".lock",
    "adapter",
    "server.log*",
)

Note = Callable[[str], None]


def finish_fleet_run(
    home: ServerHome, name: str, dealt: DealtDataset, *, folder: Path, base_dir: Path, note: Note
) -> dict[str, Any]:
    """Make the run folder of a simulation from a finished run of a fleet.

    Args:
        home: the server.
        name: of its run, which is over.
        dealt: the records on the devices.
        folder: the new run folder; one that is complete is left as it is.
        base_dir: what a relative path of the base model is relative to.
        note: is told what is being done.

    Returns:
        The contents of ``summary.json``.
    """
    began = time.monotonic()
    os.environ["FEDSLM_AUDIT_KEY"] = str(home.audit_key)
    known = RunFolder(folder).read_json(SUMMARY)
    if known is not None:
        return known
    source = home.run_folder(name)
    with disk_errors(folder):
        shutil.copytree(
            source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_FLEETS_OWN)
        )
    with (
        open_folder(folder, resume=True) as run_folder,
        Ledger(home.ledger, signer=LedgerSigner.load_or_create(home.ledger_key)) as ledger,
    ):
        setup = read_setup(run_folder.path)
        note("loading the base model, to measure")
        assembly = assemble_runtime(setup.config, setup.plan, base_dir=base_dir, dealt=dealt)
        outcome = _outcome(home, name, setup, assembly, run_folder, ledger, note)
        note("auditing")
        summary = finish_run(outcome, began=began)
        copy_ledger(home.ledger, run_folder.ledger)
    return summary


def _outcome(
    home: ServerHome,
    name: str,
    setup: RunSetup,
    assembly: Assembly,
    folder: RunFolder,
    ledger: Ledger,
    note: Note,
) -> Outcome:
    """Measure the base and the adapter on the records that devices held out."""
    from server.fleetruns import FleetRuns

    scope = setup.config.data.path
    budget = RunBudget(ledger, plan=setup.plan, run_id=setup.run_id, scope=scope)
    run = FederatedRun(setup, budget=budget, observer=FolderObserver(folder.path))
    run.restore()
    clients = run.measured_clients(setup.config.evaluation.final_clients, stream="final")
    note(f"measuring base and adapter on {len(clients)} clients")
    runtime = assembly.runtime
    grid = InProcessGrid(make_client_app(lambda _: runtime, simulated=True), setup.population)
    messenger = run.connect(grid)

    def measured(vector: Vector, group: str) -> dict[str, float]:
        losses = run.measure(messenger, clients, vector, group=group)
        return {f"client-{client}": loss for client, loss in losses.items()}

    losses: Mapping[str, dict[str, float]] = {
        "before": measured(run.initial_vector, "b"),
        "after": measured(run.released, "a"),
    }
    folder.write_json(EVALUATION, losses)
    return Outcome(
        assembly=assembly,
        plan=setup.plan,
        folder=folder,
        budget=budget,
        released=run.released,
        rounds=run.finished_rounds,
        losses=losses,
        status=str(FleetRuns(home).progress(name).state),
        ledger=ledger,
        scope=scope,
        note=note,
    )


def copy_ledger(source: Path, target: Path) -> None:
    """Copy a ledger that may be in use; the copy is whole, private, and has no key beside it."""
    target.unlink(missing_ok=True)
    with disk_errors(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def put_in_use(home: ServerHome, folder: Path, *, name: str) -> AdapterVersion:
    """Register the audited adapter of a run folder and put it in use.

    Raises:
        ReleaseRefused: if the audit stands against it.
    """
    registry = server_registry(home)
    version = add_run(registry, folder, name=name)
    return registry.promote(version.digest)


def devices_with(folders: Sequence[Path], digest: str, *, adapter_key: str) -> int:
    """Return how many devices have an adapter in use."""
    from client.adapterstore import AdapterStore

    stores = [
        AdapterStore(folder / "adapters", trusted_key=adapter_key, base_digest=None)
        for folder in folders
    ]
    return sum(store.memory().current == digest for store in stores)
