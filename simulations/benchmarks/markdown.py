"""A benchmark's report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def as_markdown(
    report: Mapping[str, Any], columns: Sequence[str], *, plot: str | None = None
) -> str:
    """Return a page with the command, the machine, the plot, the rows and the checks.

    Args:
        report: what ``fedslm bench run --json`` prints.
        columns: of the table of rows, in order.
        plot: file name of the plot beside the page, if there is one.
    """
    machine = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parameters = ", ".join(f"{key} {cell(value)}" for key, value in report["parameters"].items())
    how = (
        f"Measured by `{report['command']}` in {cell(report['seconds'])} s "
        f"on {machine['cores']} cores of {machine['cpu']}, {_beside(machine)}{machine['system']}, "
        f"Python {machine['python']}, with {packages}."
    )
    lines = [
        f"# {report['name']}",
        "",
        report["summary"],
        "",
        how,
        "",
        *([f"Parameters: {parameters}.", ""] if parameters else []),
        *([f"![{report['name']}: {report['summary']}]({plot})", ""] if plot is not None else []),
        *_table(columns, [[cell(row.get(name)) for name in columns] for row in report["rows"]]),
    ]
    if report["checks"]:
        names = ("name", "measured", "limit", "unit", "passed")
        rows = [[cell(check[name]) for name in names] for check in report["checks"]]
        lines += ["", *_table(("check", "measured", "limit", "unit", "kept"), rows)]
    return "\n".join(lines).rstrip() + "\n"


def cell(value: object) -> str:
    """Write one value for a table: floats with four digits, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/")


def _beside(machine: Mapping[str, Any]) -> str:
    """Return the accelerators in words; nothing where there is none."""
    found = machine["accelerators"]
    return f"{', '.join(found)}, " if found else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    if not columns:
        return []
    lines = [list(columns), ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
