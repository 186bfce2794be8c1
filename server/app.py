"""The Flower ServerApp: wiring only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.prepared import open_prepared
from shared.errors import SchemaMismatch

RUN_FOLDER = "run-folder"
FLEET = "fleet"


def make_server_app(main: Callable[[Grid, Context], None]) -> ServerApp:
    """Build the ServerApp around what a run does with a grid.

    Args:
        main: the composition root's function; the same one serves every engine.
    """
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        main(grid, context)

    return server


def run_prepared(grid: Grid, context: Context) -> None:
    """Run the rounds of the folder that the run configuration names.

    ``ledger`` and ``ledger-key`` name a ledger that several runs share, and the file of its key.
    ``fleet`` names the database of a fleet, which then says which client each node speaks for.

    Raises:
        SchemaMismatch: if the run configuration names no folder.
        NotResumable: if the folder holds no prepared run.
    """
    config = context.run_config
    folder = config.get(RUN_FOLDER)
    if not isinstance(folder, str) or not folder:
        msg = f"run_config has no {RUN_FOLDER!r}."
        raise SchemaMismatch(msg, hint="Prepare a run folder and name it.")
    ledger, key, fleet = (str(config.get(name) or "") for name in ("ledger", "ledger-key", FLEET))
    where, signed_with = ledger or None, Path(key) if key else None
    if fleet:
        from server.fleetapp import run_in_fleet

        run_in_fleet(
            lambda run: run.connect(grid),
            Path(folder),
            fleet=Path(fleet),
            ledger=where,
            ledger_key=signed_with,
        )
        return
    with open_prepared(Path(folder), ledger=where, ledger_key=signed_with) as run:
        run.train(run.connect(grid))


app = make_server_app(run_prepared)
