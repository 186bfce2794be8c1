"""``fedslm eval``: a model before and after its adapter, on tasks that lie on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.base_cli import show_steps

if TYPE_CHECKING:
    from shared.config import RunConfig
    from simulations.evaluating.running import Order
    from simulations.evaluating.subject import Named

DATA = Path("../shared/data/eval")
_TABLE = 120


def evaluate_model(
    model: Annotated[
        str,
        typer.Argument(
            help='"demo", a transformers folder, a hub id, or the folder of a finished run, which '
            "names base, storage and adapter itself."
        ),
    ] = "demo",
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A run, a registry or an adapter's folder; verified first. Default a run's own.",
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(help='"none", "int8", "int4" or "nf4"; default a run\'s own, else "none".'),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="See --list; default everything that needs no file.",
        ),
    ] = None,
    task_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.json", help="Questions of your own; repeatable."),
    ] = None,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Holds crows_pairs, blimp and olmo_rc.")
    ] = DATA,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of a task at most, a seeded draw.")
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(
            metavar="SCENARIO",
            help="Whose held-out text perplexity is measured on; default a run's, "
            'else "quickstart".',
        ),
    ] = None,
    most_clients: Annotated[
        int, typer.Option(min=1, help="Clients measured at most, a seeded draw.")
    ] = 200,
    watts: Annotated[
        float | None,
        typer.Option(help="Power of one busy core: energy is estimated where nothing measures it."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    public_key: Annotated[
        str | None, typer.Option(help="The only key whose signature on the adapter counts.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Is made; default runs/eval-MODEL-DATE-TIME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the tasks that are done, go on with the others.")
    ] = False,
    list_them: Annotated[bool, typer.Option("--list", help="List the tasks and leave.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Evaluate a model before and after its adapter; nothing is downloaded for a task."""
    from shared.errors import UsageError
    from simulations.evaluating.running import DEFAULT, TASKS, Order, evaluate, expand
    from simulations.evaluating.subject import find

    if list_them:
        _list(TASKS, as_json=as_json)
        return
    from simulations.evaluating.files import task_of_file
    from simulations.runfolder import default_folder, latest_folder

    own = {task.name: task for task in map(task_of_file, task_file or [])}
    if len(own) < len(task_file or []):
        msg = "Two files of questions have one name."
        raise UsageError(msg, hint="Change the name in one of them.")
    asked = tasks.split(",") if tasks is not None else ([] if own else list(DEFAULT))
    names = expand([name.strip() for name in asked if name.strip()] + list(own), own)
    named = find(model, adapter=adapter, quantization=quantization, public_key=public_key)
    config, scenario = _clients(clients, named, names)
    name = f"eval-{Path(model).resolve().name}"
    with show_steps(quiet=as_json) as step:
        order = Order(
            named=named,
            tasks=names,
            own=own,
            data=data,
            config=config,
            scenario=scenario,
            limit=limit,
            clients=most_clients,
            watts=watts,
            seed=seed,
            out=out or (latest_folder(name) if resume else None) or default_folder(name),
            resume=resume,
            note=lambda text: typer.echo(text, err=True),
            step=step,
        )
        result = evaluate(order)
    _show(order, result, as_json=as_json)


def _clients(clients: str | None, named: Named, names: list[str]) -> tuple[RunConfig | None, str]:
    """Return the scenario whose clients' text is read, and its name."""
    from simulations.catalog import open_scenario
    from simulations.evaluating.running import PERPLEXITY

    if PERPLEXITY not in names:
        return None, ""
    if clients is None and named.config is not None:
        return named.config, named.config.run.name
    resolved = open_scenario(clients or "quickstart")
    return resolved.config, resolved.config.run.name


def _list(tasks: dict[str, str], *, as_json: bool) -> None:
    """Print the tasks."""
    if as_json:
        rows = [{"name": name, "about": about} for name, about in tasks.items()]
        typer.echo(json.dumps({"tasks": rows}, indent=2))
        return
    width = max(map(len, tasks))
    for name, about in tasks.items():
        typer.echo(f"{name:<{width}}  {about}")


def _show(order: Order, result: dict[str, Any], *, as_json: bool) -> None:
    """Write table and pictures, and print."""
    from shared.files import write_text
    from simulations.evaluating.plots import perplexity_plot, score_plot
    from simulations.evaluating.show import COLUMNS, as_markdown, lines, notes

    write_text(order.out / "eval.md", as_markdown(result))
    for name, picture in (("eval", score_plot(result)), ("perplexity", perplexity_plot(result))):
        if picture is not None:
            write_text(order.out / f"{name}.svg", picture)
    found = lines(result)
    if as_json:
        said = {**result, "table": [line.to_dict() for line in found], "folder": str(order.out)}
        typer.echo(json.dumps(said, indent=2, sort_keys=True))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if place < 2 else "right", no_wrap=True)
    for line in found:
        table.add_row(*line.cells())
    # A narrower terminal wraps lines; rich would cut the numbers.
    Console(soft_wrap=True, width=max(Console().width, _TABLE)).print(table)
    for note in notes(result):
        typer.echo(note)
    typer.echo(f"results  {order.out / 'eval.json'}")
