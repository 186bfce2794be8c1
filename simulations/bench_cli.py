"""``fedslm bench``: measure what the documentation says, on this machine."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulations.benchmarks.protocol import Benchmark, BenchResult

bench_app = typer.Typer(help="Measure costs and utility on this machine.", no_args_is_help=True)

_WIDE = 10_000

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@bench_app.command("list")
def list_benchmarks(as_json: AsJson = False) -> None:
    """List the benchmarks and what each measures."""
    from simulations.benchmarks.catalog import summaries

    found = summaries()
    if as_json:
        rows = [{"name": name, "summary": line} for name, line in found.items()]
        _print_json({"benchmarks": rows})
        return
    width = max((len(name) for name in found), default=0)
    for name, line in found.items():
        typer.echo(f"{name:<{width}}  {line}")


@bench_app.command("run")
def run_benchmark(
    name: Annotated[str, typer.Argument(help="One of those that `bench list` shows.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller sizes, seconds; limits are not enforced.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write NAME.json, NAME.md and plots into this folder."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD",
            help="Leave out other cases; repeatable. For benchmarks of many runs: a scenario, "
            "a policy, epsilon=8, seed=7.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the finished runs of an interrupted benchmark.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run one benchmark; exit 1 if a limit is exceeded (not with --quick)."""
    import time

    from simulations.benchmarks.catalog import benchmark, called
    from simulations.benchmarks.machine import describe_machine

    module = benchmark(name)
    started = time.perf_counter()
    with _lines_on_stderr():
        result = _measure(module, quick=quick, out=out, only=only or (), resume=resume)
    report = {
        **result.to_dict(),
        "name": called(module),
        "command": _command(called(module), quick=quick, only=only or ()),
        "summary": module.SUMMARY,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 3),
        "machine": describe_machine(),
    }
    if out is not None:
        _write(module, result, report, out)
    _print_json(report) if as_json else _print_tables(result)
    _leave(result, quick=quick)


def _measure(
    module: Benchmark, *, quick: bool, out: Path | None, only: Sequence[str], resume: bool
) -> BenchResult:
    """Run a benchmark with what it takes of the options.

    Raises:
        UsageError: for ``--only`` or ``--resume`` with a benchmark that has no runs to choose from.
    """
    from shared.errors import UsageError
    from simulations.benchmarks.catalog import called, keeping
    from simulations.benchmarks.protocol import Asked

    many = keeping(module)
    name = called(module)
    if many is not None:
        home = out or Path("runs") / f"bench-{name}{'-quick' if quick else ''}"
        asked = Asked(folder=home / f"{name}-runs", resume=resume, only=tuple(only))
        return many.run(quick=quick, asked=asked)
    if only or resume:
        msg = f"{'--resume' if resume else '--only'} is not for the benchmark {name!r}."
        raise UsageError(msg, hint="It is one measurement: leave the option out.")
    return module.run(quick=quick)


def _write(module: Benchmark, result: BenchResult, report: dict[str, Any], folder: Path) -> None:
    """Write a result as JSON and Markdown, and its plot if the benchmark draws."""
    from shared.files import disk_errors, write_json, write_text
    from simulations.benchmarks.catalog import plotting
    from simulations.benchmarks.markdown import as_markdown

    name = str(report["name"])
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", report)
    drawing = plotting(module)
    plot = None if drawing is None else f"{name}.svg"
    if drawing is not None:
        drawing.plot(result, folder / f"{name}.svg")
    write_text(folder / f"{name}.md", as_markdown(report, result.columns(), plot=plot))


def _command(name: str, *, quick: bool, only: Sequence[str]) -> str:
    """Return the command that repeats a measurement."""
    words = [name, *(["--quick"] if quick else [])]
    words += [part for word in only for part in ("--only", word)]
    return f"fedslm bench run {shlex.join(words)}"


@contextmanager
def _lines_on_stderr() -> Iterator[None]:
    """Show what a benchmark says of its progress, a line each, while it runs."""
    from simulations.benchmarks.protocol import PROGRESS

    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(message)s"))
    level, outwards = PROGRESS.level, PROGRESS.propagate
    PROGRESS.addHandler(lines)
    PROGRESS.setLevel(logging.INFO)
    PROGRESS.propagate = False  # a library that a benchmark loads may have set the root up
    try:
        yield
    finally:
        PROGRESS.propagate = outwards
        PROGRESS.setLevel(level)
        PROGRESS.removeHandler(lines)


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

    # As wide as the table: a terminal wraps long lines, and a narrow one would lose columns.
    console = Console(soft_wrap=True, width=_WIDE)
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
