"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn


class RunProgress(Protocol):
    """Shows a run; a superset of the server's round observer."""

    def note(self, text: str) -> None:
        """Say what is being done outside rounds."""

    def started(self, server_round: int, cohort: int) -> None:
        """A round begins with so many clients."""

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """One more client of the round answered."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """A round is over."""


class Clock:
    """Estimates the time left from the rounds done by this process."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._began = time.monotonic()
        self._done = 0

    def left(self, server_round: int) -> float:
        """Count a finished round and return the seconds left."""
        self._done += 1
        per_round = (time.monotonic() - self._began) / self._done
        return per_round * (self._rounds - server_round)


class PlainProgress:
    """One line a round, for logs and pipes."""

    def __init__(self, rounds: int, console: Console) -> None:
        self._rounds = rounds
        self._console = console
        self._clock = Clock(rounds)

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False)

    def started(self, server_round: int, cohort: int) -> None:
        """Print nothing; the finished line says it."""

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Print nothing; the finished line says it."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Print the round."""
        left = self._clock.left(int(record["round"]))
        line = f"round {record['round']}/{self._rounds}  {describe(record)}  left {clock(left)}"
        self._console.print(line, highlight=False)


class LiveProgress:
    """A bar of rounds with the current client, loss, epsilon and time left."""

    def __init__(self, rounds: int, progress: Progress) -> None:
        self._progress = progress
        self._rounds = rounds
        self._clock = Clock(rounds)
        self._task: TaskID = progress.add_task("starting", total=rounds, detail="", cohort="")

    def note(self, text: str) -> None:
        """Show what is being done."""
        self._progress.update(self._task, description=text)

    def started(self, server_round: int, cohort: int) -> None:
        """Show the round."""
        self._progress.update(
            self._task,
            description="training",
            completed=server_round - 1,
            cohort=f"client 0/{cohort}",
        )

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Show the client."""
        self._progress.update(self._task, cohort=f"client {answered}/{cohort}")

    def finished(self, record: Mapping[str, Any]) -> None:
        """Show the round's result."""
        left = clock(self._clock.left(int(record["round"])))
        self._progress.update(
            self._task, completed=record["round"], detail=f"{describe(record)}  left {left}"
        )


@contextmanager
def show_progress(rounds: int, *, quiet: bool = False) -> Iterator[RunProgress]:
    """Show a run on stderr, live if it is a terminal.

    Args:
        rounds: how many rounds the run has.
        quiet: print plain lines even on a terminal.
    """
    console = Console(stderr=True, soft_wrap=True)
    if quiet or not sys.stderr.isatty():
        yield PlainProgress(rounds, console)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[cohort]}"),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield LiveProgress(rounds, progress)


def describe(record: Mapping[str, Any]) -> str:
    """Return loss, cohort, privacy spent and what the run may stop by, in one line."""
    loss = "loss -" if record["loss"] is None else f"loss {record['loss']:.4f}"
    epsilon = record["epsilon"]
    if epsilon is None:
        spent = "no privacy"
    else:
        spent = f"epsilon {epsilon:.3f} of {record['cap']:.3f} at delta {record['delta']:.2g}"
    if "noise_multiplier" in record:
        spent += f"  noise {record['noise_multiplier']:.3f}"
    for key in ("public_loss", "vote"):
        if key in record:
            spent += f"  {key.replace('_', ' ')} {record[key]:.4f}"
    return f"{record['answered']} clients  {loss}  {spent}"


def clock(seconds: float) -> str:
    """Return seconds as ``m:ss``.

    Examples:
        >>> clock(75.2)
        '1:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
