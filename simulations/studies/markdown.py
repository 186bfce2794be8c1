"""A study's report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.studies.protocol import Column, Row


def as_markdown(report: Mapping[str, Any], rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a page with the question, the command, the table and links to the plots.

    Args:
        report: the contents of ``study.json``.
        rows: the table.
        columns: which estimates to show, in order.
    """
    seeds = report["seeds"]
    machine = report["machine"]
    how = (
        f"Measured by `{report['command']}` with seeds {', '.join(map(str, seeds))} on "
        f"{machine['cores']} cores of {machine['cpu']}."
    )
    lines = [
        f"# {report['study']}",
        "",
        report["question"],
        "",
        how,
        "",
        about(len(seeds), quick=report["quick"]),
        "",
        *table(rows, columns),
        "",
        *(f"![{report['study']}]({plot})" for plot in report["plots"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def about(seeds: int, *, quick: bool) -> str:
    """Say what the numbers of a table are."""
    text = (
        "One seed, so there is no spread."
        if seeds == 1
        else f"Mean ± standard deviation over {seeds} seeds; [n] where fewer have a value."
    )
    return f"{text} Tiny sizes (--quick): these numbers show nothing." if quick else text


def table(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Return the lines of a Markdown table."""
    head = ["", *(column.title for column in columns)]
    body = [[row.label, *cells(row, columns, most=_most(rows))] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def cells(row: Row, columns: Sequence[Column], *, most: int) -> list[str]:
    """Return the estimates of a row as text.

    Args:
        row: the row.
        columns: which estimates.
        most: number of seeds; an estimate over fewer says over how many.
    """
    found = []
    for column in columns:
        estimate = row.estimates.get(column.key)
        if estimate is None or estimate.mean is None:
            found.append("-")
            continue
        text = estimate.text(column.digits)
        found.append(text if estimate.n == most else f"{text} [{estimate.n}]")
    return found


def _most(rows: Sequence[Row]) -> int:
    """Return over how many seeds estimates are at most."""
    return max((e.n for row in rows for e in row.estimates.values()), default=0)
