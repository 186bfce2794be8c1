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
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.config import RunConfig
from shared.configfile import parse_json
from shared.errors import NotResumable
from shared.files import append_line
from shared.lora import AdapterSpec
from shared.privacy.ledger import Ledger
from shared.privacy.plan import PrivacyPlan

IDENTITY = "run.json"
LEDGER = "ledger.sqlite"
METRICS = "metrics.jsonl"

logger = logging.getLogger("fedslm.server")


def describe_run(
    config: RunConfig, plan: PrivacyPlan, spec: AdapterSpec, population: int
) -> dict[str, Any]:
    """Return the contents of ``run.json``."""
    return {
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
    """
    try:
        data = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
        config = parse_json(json.dumps(data["config"]))
        plan = PrivacyPlan.from_json(data["plan"])
        spec = AdapterSpec.from_json(data["spec"])
        population = int(data["population"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{IDENTITY} is missing or damaged."
        raise NotResumable(msg, hint="Prepare the run again in another folder.") from error
    return RunSetup(
        run_id=run_name(config),
        config=config,
        plan=plan,
        spec=spec,
        population=population,
        folder=folder,
    )


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


@contextmanager
def open_prepared(folder: Path) -> Iterator[FederatedRun]:
    """Open the run of a folder with its ledger, at its checkpoint.

    Raises:
        NotResumable: if the folder holds no prepared run.
        LedgerError: if its ledger cannot be used.
    """
    setup = read_setup(folder)
    with Ledger(folder / LEDGER) as ledger:
        scope = setup.config.data.path
        budget = RunBudget(ledger, plan=setup.plan, run_id=setup.run_id, scope=scope)
        run = FederatedRun(setup, budget=budget, observer=FolderObserver(folder))
        run.restore()
        yield run
