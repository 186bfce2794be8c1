"""What the ServerApp does in a fleet: one attempt at a prepared run, from its checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from server.adapters import write_adapter
from server.fleetdb import FleetDatabase
from server.fleetdirectory import FleetDirectory
from server.fleetruns import ADAPTER, LOCK, ORDER, OUTCOME, Outcome, read_order, write_outcome
from server.flowermessages import pull_without_delay
from server.locks import held_within
from server.logs import MOST_BYTES, JsonFormatter
from server.messenger import Messenger
from server.prepared import open_prepared, read_metrics
from server.strategy import FederatedRun
from shared.errors import FedSLMError, FleetError, PrivacyBudgetExhausted
from shared.lora import initial_factors
from shared.residual import stacked

logger = logging.getLogger("fedslm.server")

LOG = "server.log"

_LOCK_SECONDS = 10.0


def run_in_fleet(
    connect: Callable[[FederatedRun], Messenger],
    folder: Path,
    *,
    fleet: Path,
    ledger: str | None,
    ledger_key: Path | None,
) -> None:
    """Run what is left of a prepared run on the nodes of a fleet, and write its adapter.

    Args:
        connect: connects a run to the nodes.
        folder: the run folder; held while this runs.
        fleet: the database that says which client each node speaks for.
        ledger: see :func:`server.prepared.open_prepared`.
        ledger_key: likewise.

    Raises:
        AlreadyRunning: if another process works in the folder.
        FedSLMError: whatever stopped the run; ``outcome.json`` names it.
    """
    pull_without_delay()
    with held_within(folder / LOCK, _LOCK_SECONDS), _logged(folder / LOG):
        (folder / OUTCOME).unlink(missing_ok=True)
        directory = FleetDirectory(FleetDatabase(fleet))
        rounds = 0
        try:
            with open_prepared(
                folder, ledger=ledger, ledger_key=ledger_key, directory=directory
            ) as run:
                state = "completed"
                try:
                    run.train(connect(run))
                except PrivacyBudgetExhausted as error:
                    logger.warning("the budget is spent: %s", error.message)
                    state = "budget-exhausted"
                rounds = run.finished_rounds
                if rounds > 0 and all(record.get("aborted") for record in read_metrics(folder)):
                    msg = f"None of {rounds} rounds released anything."
                    raise FleetError(msg, hint="server.log in the run folder says why.")
                if rounds > 0:
                    _write_adapter(run, folder)
        except FedSLMError as error:
            failed = Outcome(state="failed", code=error.code, message=error.message, rounds=rounds)
            write_outcome(folder, failed)
            raise
        write_outcome(
            folder,
            Outcome(
                state="completed" if state == "completed" else "budget-exhausted",
                code="",
                message="",
                rounds=rounds,
            ),
        )


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Keep what the server says about a run with the run."""
    handler = RotatingFileHandler(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("fedslm")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


def _write_adapter(run: FederatedRun, folder: Path) -> None:
    """Write the released adapter in PEFT's format, without torch."""
    setup = run.setup
    order = read_order(folder / ORDER)
    factors = initial_factors(setup.spec, setup.config.adapter_seed)
    factors |= setup.spec.unflatten(run.released, setup.config.trained_kinds)
    spec, whole = stacked(setup.spec, factors, run.residual)
    write_adapter(
        folder / ADAPTER,
        spec=spec,
        factors=whole,
        base_model=order.base_model,
        dropout=setup.config.lora.dropout,
        manifest={
            "base_digest": order.base_digest,
            "config_digest": setup.config.digest(),
            "plan_digest": setup.plan.digest(),
            "ledger_head": run.ledger_head,
            "rounds": run.finished_rounds,
            **({"kept_by_clients": kept} if (kept := setup.config.policy_facts.kept) else {}),
        },
    )
