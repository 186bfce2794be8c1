"""``fedslm study``: small families of runs that answer one question about leakage each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulations.studies.protocol import Study
    from simulations.studies.running import Outcome

study_app = typer.Typer(help="Study what makes an adapter leak.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@study_app.command("list")
def list_studies(as_json: AsJson = False) -> None:
    """List the studies and what each asks."""
    from simulations.studies.catalog import studies

    found = studies()
    if as_json:
        _print_json({"studies": [{"name": s.name, "question": s.question} for s in found]})
        return
    width = max(len(study.name) for study in found)
    for study in found:
        typer.echo(f"{study.name:<{width}}  {study.question}")


@study_app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="One of those that `study list` shows.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes and one seed: does it work, not what it is.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many seeds; default 3, or 1 with --quick.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Default runs/study-NAME; finished runs there are not run again."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run what is missing of a study, and write its table, plots and numbers."""
    from simulations.studies.catalog import study
    from simulations.studies.running import run_study

    chosen = study(name)
    folder = out or Path("runs") / f"study-{name}{'-quick' if quick else ''}"
    outcome = run_study(chosen, folder=folder, quick=quick, seeds=seeds, note=_note)
    if as_json:
        _print_json({**outcome.report, "folder": str(folder)})
    else:
        _print_table(chosen, outcome)


def _print_table(study: Study, outcome: Outcome) -> None:
    """Print the table, what it means, and where the rest is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from simulations.studies.markdown import about, cells

    console = Console(soft_wrap=True)
    seeds = len(outcome.report["seeds"])
    # Studies have many columns, so each is a line and each arm a column.
    table = Table("", *(row.label for row in outcome.rows), box=None, pad_edge=False)
    lines = [cells(row, study.columns, most=seeds) for row in outcome.rows]
    for place, column in enumerate(study.columns):
        table.add_row(column.title, *(escape(line[place]) for line in lines))
    console.print(study.question, highlight=False)
    console.print(table)
    told = about(seeds, quick=bool(outcome.report["quick"]))
    console.print(told, highlight=False, markup=False)
    console.print(f"Table and plots: {outcome.folder / 'study.md'}", highlight=False)


def _note(text: str) -> None:
    """Say on stderr what is being done."""
    typer.echo(text, err=True)


def _print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
