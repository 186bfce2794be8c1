"""``fedslm bench``: measure what the documentation says, on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulations.benchmarks.protocol import BenchResult

bench_app = typer.Typer(help="Measure costs and utility on this machine.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@bench_app.command("list")
def list_benchmarks(as_json: AsJson = False) -> None:
    """List the benchmarks and what each measures."""
    from simulations.benchmarks.catalog import benchmarks

    found = benchmarks()
    if as_json:
        rows = [{"name": name, "summary": item.SUMMARY} for name, item in found.items()]
        _print_json({"benchmarks": rows})
        return
    width = max((len(name) for name in found), default=0)
    for name, item in found.items():
        typer.echo(f"{name:<{width}}  {item.SUMMARY}")


@bench_app.command("run")
def run_benchmark(
    name: Annotated[str, typer.Argument(help="One of those that `bench list` shows.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller sizes, seconds; limits are not enforced.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write FILE.json and FILE.md; the suffix is replaced."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one benchmark; exit 1 if a limit is exceeded (not with --quick)."""
    import time

    from simulations.benchmarks.catalog import benchmark
    from simulations.benchmarks.machine import describe_machine

    module = benchmark(name)
    started = time.perf_counter()
    result = module.run(quick=quick)
    report = {
        **result.to_dict(),
        "summary": module.SUMMARY,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 3),
        "machine": describe_machine(),
    }
    if out is not None:
        from shared.files import write_json, write_text
        from simulations.benchmarks.markdown import as_markdown

        write_json(out.with_suffix(".json"), report)
        write_text(out.with_suffix(".md"), as_markdown(report, result.columns()))
    _print_json(report) if as_json else _print_tables(result)
    _leave(result, quick=quick)


def _leave(result: BenchResult, *, quick: bool) -> None:
    """Say which limit was exceeded and leave with 1, unless this was only a quick look."""
    for check in result.checks:
        if not check.passed:
            typer.echo(
                f"{'note' if quick else 'failed'}: {check.name}: measured {check.measured:.4g} "
                f"{check.unit}, the limit is {check.limit:.4g} {check.unit}.",
                err=True,
            )
    if not (result.passed or quick):
        raise typer.Exit(1)


def _print_tables(result: BenchResult) -> None:
    """Print rows and checks as tables."""
    from rich.console import Console
    from rich.table import Table

    from simulations.benchmarks.markdown import cell

    console = Console(soft_wrap=True)
    columns = result.columns()
    if columns:
        rows = Table(*columns, box=None, pad_edge=False)
        for row in result.rows:
            rows.add_row(*(cell(row.get(column)) for column in columns))
        console.print(rows)
    checks = Table("check", "measured", "limit", "unit", "kept", box=None, pad_edge=False)
    for check in result.checks:
        kept = "[green]yes[/]" if check.passed else "[red]no[/]"
        checks.add_row(check.name, cell(check.measured), cell(check.limit), check.unit, kept)
    if result.checks:
        console.print(checks)


def _print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
