"""``fedslm server``: make a server, run it, start and stop runs on its fleet, and watch them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.budget_common import AsJson, print_json
from simulations.enrol_cli import server_enroll, server_nodes, server_revoke

if TYPE_CHECKING:
    from rich.console import RenderableType

    from server.fleetruns import FleetRuns, RunView
    from simulations.fleetprepare import Started

server_app = typer.Typer(help="Run a server and the training of its fleet.", no_args_is_help=True)
server_app.command("enroll")(server_enroll)
server_app.command("nodes")(server_nodes)
server_app.command("revoke")(server_revoke)

HOME_VARIABLE = "FEDSLM_SERVER"
HOME_DEFAULT = Path("server-home")
FOLLOW_SECONDS = 1.0

Folder = Annotated[
    Path, typer.Argument(envvar=HOME_VARIABLE, help="Folder of the server.", metavar="DIR")
]
FolderOption = Annotated[
    Path, typer.Option("--dir", envvar=HOME_VARIABLE, help="Folder of the server.", metavar="DIR")
]


@server_app.command("init")
def init(
    folder: Folder = HOME_DEFAULT,
    name: Annotated[str, typer.Option(help="Short name of the server.")] = "fedslm",
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address that devices dial; repeatable."),
    ] = None,
    bind: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every one of the machine.")
    ] = "127.0.0.1",
    fleet_port: Annotated[int, typer.Option(help="Port of Flower's Fleet calls.")] = 9092,
    control_port: Annotated[int, typer.Option(help="Port of the control service.")] = 9093,
    dashboard_port: Annotated[int, typer.Option(help="Port of the dashboard.")] = 9094,
    superlink_port: Annotated[int, typer.Option(help="Port of the SuperLink, loopback.")] = 9095,
    as_json: AsJson = False,
) -> None:
    """Make the folder of a server: authority, certificate, keys, settings."""
    from pydantic import ValidationError

    from server.home import ServerHome
    from server.settings import ServerConfig, problems_of

    try:
        config = ServerConfig(
            name=name,
            hosts=tuple(hosts or ["localhost"]),
            bind=bind,
            fleet_port=fleet_port,
            control_port=control_port,
            dashboard_port=dashboard_port,
            superlink_port=superlink_port,
        )
    except ValidationError as error:
        raise problems_of(error) from None
    home = ServerHome.create(folder, config)
    if as_json:
        print_json({"folder": str(home.path), "config": config.model_dump(mode="json")})
        return
    typer.echo(f"Made a server in {folder}. Its keys are in there: keep a copy, and keep it safe.")
    typer.echo(f"Devices will dial {config.fleet_address} and {config.control_address}.")
    typer.echo(f"Next: fedslm server run {folder}")


@server_app.command("run")
def run(folder: Folder = HOME_DEFAULT) -> None:
    """Run everything of a server until it is told to stop (Ctrl-C, or SIGTERM)."""
    from server.home import ServerHome
    from server.logs import log_as_json
    from server.supervisor import Supervisor

    log_as_json()
    supervisor = Supervisor(ServerHome.open(folder))
    supervisor.stop_on_signals()
    supervisor.run()


@server_app.command("status")
def status(folder: FolderOption = HOME_DEFAULT, as_json: AsJson = False) -> None:
    """Show what runs: processes, nodes, runs; exit 0 if everything does its work."""
    from server.fleetdb import FleetDatabase
    from server.fleetruns import FleetRuns
    from server.home import ServerHome
    from server.supervisor import read_status

    home = ServerHome.open(folder)
    found = read_status(home)
    with FleetDatabase(home.fleet_database) as database:
        nodes = [n for n in database.nodes() if n.role == "node"]
    now = time.time()
    found["nodes"] = {
        "enrolled": sum(n.revoked_at is None for n in nodes),
        "revoked": sum(n.revoked_at is not None for n in nodes),
        "seen_lately": sum(n.last_seen is not None and now - n.last_seen < 60 for n in nodes),
    }
    views = FleetRuns(home).all()
    found["runs"] = [view.to_dict() for view in views]
    if as_json:
        print_json(found)
    else:
        _print_status(found, views)
    if found["state"] != "healthy":
        raise typer.Exit(1)


@server_app.command("start-run")
def start_run(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, or the path of a TOML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; default NAME-DATE-TIME.")] = None,
    roster: Annotated[
        Path | None, typer.Option(help="Identity keys of all clients (client-distributed).")
    ] = None,
    folder: FolderOption = HOME_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Order a run of a scenario on the fleet; a server that runs takes it up at once."""
    from server.home import ServerHome
    from simulations.catalog import open_scenario
    from simulations.fleetprepare import start_run as start

    home = ServerHome.open(folder)
    resolved = open_scenario(scenario, overrides or [])
    started = start(home, resolved, name=name, roster=roster)
    if as_json:
        print_json(_started(started))
        return
    typer.echo(f"Ordered run {started.view.name} for {started.view.population} clients.")
    for warning in started.warnings:
        typer.echo(f"note: {warning}", err=True)
    typer.echo(f"Watch it: fedslm server rounds {started.view.name} --follow")


@server_app.command("stop-run")
def stop_run(
    name: Annotated[str, typer.Argument(help="Of the run.")],
    folder: FolderOption = HOME_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Order a run to stop after what it has finished; resume-run goes on with it."""
    _want(folder, name, running=False, as_json=as_json)


@server_app.command("resume-run")
def resume_run(
    name: Annotated[str, typer.Argument(help="Of the run.")],
    folder: FolderOption = HOME_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Order a run that was stopped, or has failed, to go on from its last finished round."""
    _want(folder, name, running=True, as_json=as_json)


@server_app.command("rounds")
def rounds(
    name: Annotated[str, typer.Argument(help="Of the run.")],
    folder: FolderOption = HOME_DEFAULT,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay and show rounds as they finish.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the finished rounds of a run."""
    from server.fleetruns import FleetRuns
    from server.home import ServerHome

    runs = FleetRuns(ServerHome.open(folder))
    if as_json:
        _print_rounds_json(runs, name, follow=follow)
        return
    from rich.console import Console

    if not follow:
        Console().print(_screen(runs.view(name), runs.rounds(name)))
        return
    from rich.live import Live

    with Live(refresh_per_second=2) as live:
        while True:
            view = runs.view(name)
            live.update(_screen(view, runs.rounds(name)[-20:]))
            if _over(view):
                return
            time.sleep(FOLLOW_SECONDS)


def _want(folder: Path, name: str, *, running: bool, as_json: bool) -> None:
    """Write an order and show the run."""
    from server.fleetruns import FleetRuns
    from server.home import ServerHome

    runs = FleetRuns(ServerHome.open(folder))
    view = runs.want(name, "running" if running else "stopped")
    if as_json:
        print_json(view.to_dict())
    else:
        typer.echo(f"Ordered run {name} to {'go on' if running else 'stop'}.")


def _over(view: RunView) -> bool:
    """Tell whether a run will not go on by itself."""
    from server.fleetruns import FINAL

    return view.state in FINAL or view.state == "stopped"


def _started(started: Started) -> dict[str, Any]:
    """Return the JSON form of an ordered run."""
    warnings = list(started.warnings)
    return {**started.view.to_dict(), "enrolled": started.enrolled, "warnings": warnings}


def _print_rounds_json(runs: FleetRuns, name: str, *, follow: bool) -> None:
    """Print a run with its rounds; when following, one JSON line a round and one at the end."""
    import json

    if not follow:
        print_json({**runs.view(name).to_dict(), "records": runs.rounds(name)})
        return
    shown = 0
    while True:
        view, records = runs.view(name), runs.rounds(name)
        for record in records[shown:]:
            typer.echo(json.dumps(record, sort_keys=True))
        shown = len(records)
        if _over(view):
            typer.echo(json.dumps(view.to_dict(), sort_keys=True))
            return
        time.sleep(FOLLOW_SECONDS)


def _screen(view: RunView, records: list[dict[str, Any]]) -> RenderableType:
    """Draw a run: a line about it, and a table of rounds."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = f"{view.name}  {view.state}  round {view.round} of {view.rounds}"
    if view.reason:
        head += f"  ({view.reason})"
    table = Table("round", "cohort", "answered", "loss", "epsilon", "seconds", box=None)
    for record in records:
        table.add_row(
            str(record.get("round", "")),
            str(record.get("cohort", "")),
            str(record.get("answered", "")),
            _figure(record.get("loss")),
            _figure(record.get("epsilon")),
            _figure(record.get("seconds")),
        )
    return Group(Text(head, style="bold"), table, Text(_foot(view), style="dim"))


def _foot(view: RunView) -> str:
    """Say what the column epsilon means; nothing before the first round, when it is not known."""
    if view.delta is not None:
        return f"epsilon of who has spent most, at delta {view.delta:g}"
    return "no privacy" if view.round else ""


def _print_status(found: dict[str, Any], views: tuple[RunView, ...]) -> None:
    """Print processes, nodes and runs."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(f"server: {found['state']}", highlight=False)
    processes = Table("process", "state", "pid", "restarts", box=None, pad_edge=False)
    for name, process in found.get("processes", {}).items():
        pid = "" if process["pid"] is None else str(process["pid"])
        processes.add_row(name, process["state"], pid, str(process["restarts"]))
    nodes = found["nodes"]
    console.print(processes)
    console.print(
        f"nodes: {nodes['enrolled']} enrolled, {nodes['seen_lately']} seen in the last minute, "
        f"{nodes['revoked']} revoked",
        highlight=False,
    )
    runs = Table("run", "state", "round", "loss", "note", box=None, pad_edge=False)
    for view in views:
        position = f"{view.round}/{view.rounds}"
        runs.add_row(view.name, view.state, position, _figure(view.loss), view.reason)
    console.print(runs)


def _figure(value: Any) -> str:  # noqa: ANN401 - a JSON value
    """Write a number of a metrics line."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""
