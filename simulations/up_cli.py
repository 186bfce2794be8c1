"""``fedslm up``: a whole fleet on this machine, for a first look and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT = Path("fedslm-up")
SCENARIO = "fleet"
MOST_NODES = 50


def add_commands(app: typer.Typer) -> None:
    """Add the command to ``fedslm``."""
    app.command("up")(up)


def up(
    nodes: Annotated[int, typer.Option(min=1, max=MOST_NODES, help="How many devices.")] = 5,
    scenario: Annotated[
        str, typer.Option(help="A built-in scenario, or the path of a TOML file.")
    ] = SCENARIO,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How many rounds; default the scenario's.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(
            "--dir", metavar="DIR", help="Where everything goes; given again, it goes on."
        ),
    ] = DEFAULT,
    exit_when_done: Annotated[
        bool, typer.Option("--exit-when-done", help="Stop everything once the run is over.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.")
    ] = False,
) -> None:
    """Bring up a server and nodes on this machine, run a scenario on them, and look on.

    Loopback, TLS, enrolled keys, separate processes: what several machines would do. Ctrl-C stops
    all of it at any time; the same command goes on where it was.
    """
    from simulations.up import Fleet, Request
    from simulations.updeal import fleet_scenario
    from simulations.upview import open_view

    made = fleet_scenario(scenario, overrides or [], nodes=nodes, rounds=rounds)
    request = Request(
        resolved=made.resolved,
        nodes=nodes,
        folder=folder,
        base_dir=Path.cwd(),
        exit_when_done=exit_when_done,
    )
    fleet: Fleet | None = None
    try:
        with open_view(as_json=as_json, out=_line) as view:
            for note in made.notes:
                view.event("note", text=note)
            fleet = Fleet(request, view)
            fleet.up()
    except KeyboardInterrupt:
        finished = fleet is not None and fleet.summary is not None
        if finished and not exit_when_done:
            return
        typer.echo("interrupted; the same command goes on", err=True)
        raise typer.Exit(130) from None
    if fleet.summary is not None:
        _done(fleet.summary, folder / "runs" / request.run, as_json=as_json)


def _done(summary: dict[str, object], folder: Path, *, as_json: bool) -> None:
    """Show what came out, and leave as a simulation does."""
    if not as_json:
        from simulations.summarytable import print_summary

        print_summary(summary, folder)
    if summary["status"] == "budget-exhausted":
        from shared.errors import PrivacyBudgetExhausted

        raise typer.Exit(PrivacyBudgetExhausted.exit_code)


def _line(text: str) -> None:
    """Print a line at once."""
    typer.echo(text)
