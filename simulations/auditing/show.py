"""What a person sees while audits run, and the table that ends them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from server.audit.protocol import Finding

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

COLOURS = {"consistent": "green", "violation": "bold red", "inconclusive": "yellow"}


class AuditProgress(Protocol):
    """Is told what the suite does."""

    def note(self, text: str) -> None:
        """Say what is being done between audits."""

    def expect(self, audits: int) -> None:
        """Say how many audits there will be."""

    def starts(self, audit: str, cost: str) -> None:
        """An audit starts; this is what it costs."""

    def ends(self, finding: Finding) -> None:
        """An audit is over."""


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def expect(self, audits: int) -> None:
        """Show nothing."""

    def starts(self, audit: str, cost: str) -> None:
        """Show nothing."""

    def ends(self, finding: Finding) -> None:
        """Show nothing."""


class Noted:
    """Passes on as short notes what audits do.

    Args:
        note: is told.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def note(self, text: str) -> None:
        """Pass a note on."""
        self._note(text)

    def expect(self, audits: int) -> None:
        """Say nothing."""

    def starts(self, audit: str, cost: str) -> None:
        """Say which audit runs."""
        self._note(f"auditing: {audit} ({cost})")

    def ends(self, finding: Finding) -> None:
        """Say nothing."""


class Plain:
    """One line an audit, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False)

    def expect(self, audits: int) -> None:
        """Print how many."""
        self._console.print(f"{audits} audits", highlight=False)

    def starts(self, audit: str, cost: str) -> None:
        """Print the cost."""
        self._began = time.monotonic()
        self._console.print(f"{audit}: {cost}", highlight=False)

    def ends(self, finding: Finding) -> None:
        """Print the verdict and the time it took."""
        took = time.monotonic() - self._began
        self._console.print(f"{finding.audit}: {finding.verdict} ({took:.1f} s)", highlight=False)


class Live:
    """A bar of audits with the current one and what it costs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("preparing", total=None, detail="")

    def note(self, text: str) -> None:
        """Show what is being done."""
        self._progress.update(self._task, description=text, detail="")

    def expect(self, audits: int) -> None:
        """Show how many."""
        self._progress.update(self._task, total=audits, completed=0)

    def starts(self, audit: str, cost: str) -> None:
        """Show the audit."""
        self._progress.update(self._task, description=audit, detail=cost)

    def ends(self, finding: Finding) -> None:
        """Show the verdict and move the bar."""
        colour = COLOURS[finding.verdict]
        self._progress.console.print(
            f"{finding.audit:<14} [{colour}]{finding.verdict}[/]", highlight=False
        )
        self._progress.advance(self._task)


@contextmanager
def show_audits(*, quiet: bool = False) -> Iterator[AuditProgress]:
    """Show a suite on stderr, live if it is a terminal.

    Args:
        quiet: print plain lines even on a terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, soft_wrap=True)
    if quiet or not sys.stderr.isatty():
        yield Plain(console)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Live(progress)


def findings_table(report: Mapping[str, Any]) -> Table:
    """Return the findings of a report as a table for a terminal."""
    from rich.table import Table

    table = Table(
        "audit", "verdict", "metric", "value", "control", "ceiling", box=None, pad_edge=False
    )
    controls = report.get("controls", {})
    for finding in report["findings"]:
        control = controls.get(finding["audit"], {})
        verdict = finding["verdict"]
        table.add_row(
            finding["audit"],
            f"[{COLOURS[verdict]}]{verdict}[/]",
            str(finding["metric"]).replace("_", " "),
            _value(finding),
            _number(control.get("value")),
            _number(finding["ceiling"]),
        )
    return table


def _value(finding: Mapping[str, Any]) -> str:
    """Return a value with its interval."""
    interval = finding["interval"]
    between = "" if interval is None else f" [{interval[0]:.3g} to {interval[1]:.3g}]"
    return f"{_number(finding['value'])}{between}".replace("[", r"\[")


def _number(value: float | None) -> str:
    """Return a number in three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"
