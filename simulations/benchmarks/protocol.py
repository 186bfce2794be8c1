"""What a benchmark is: a module of this package with ``SUMMARY`` and ``run(*, quick)``.

A benchmark returns rows (what was measured) and checks (what was promised). Numbers in the
documentation come from ``fedslm bench run``, never from memory.

Two things more a module may have: ``plot(result, path)``, which writes an SVG file of a result, and
``KEEPS_RUNS = True``, which says that its ``run`` takes :class:`Asked` and leaves finished runs in
a folder. What a long benchmark is doing it says to :data:`PROGRESS`, a line a case: a live display
would need a thread, and the benchmark would time that too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Scalar = str | int | float | bool | None

PROGRESS = logging.getLogger("fedslm.bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise: a measured number that must not exceed a limit.

    Attributes:
        name: what was measured, in words.
        measured: the number; NaN fails.
        limit: the largest number that keeps the promise.
        unit: of both, such as ``"s"``.
    """

    name: str
    measured: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """Tell whether the promise was kept."""
        return self.measured <= self.limit

    def to_dict(self) -> dict[str, Scalar]:
        """Return the JSON form; a number that is not finite is ``None``."""
        return {
            "name": self.name,
            "measured": _plain(self.measured),
            "limit": _plain(self.limit),
            "unit": self.unit,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What one benchmark found.

    Attributes:
        name: of the benchmark.
        parameters: what was measured under, such as the number of clients.
        rows: one mapping per measurement; the keys are the columns, in the order of appearance.
        checks: the promises that the rows are held to.
    """

    name: str
    parameters: Mapping[str, Scalar]
    rows: tuple[Mapping[str, Scalar], ...]
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Tell whether every promise was kept."""
        return all(check.passed for check in self.checks)

    def columns(self) -> tuple[str, ...]:
        """Return the keys of all rows in the order of their first appearance."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form; a number that is not finite is ``None``."""
        return {
            "name": self.name,
            "parameters": {key: _plain(value) for key, value in self.parameters.items()},
            "rows": [{key: _plain(value) for key, value in row.items()} for row in self.rows],
            "checks": [check.to_dict() for check in self.checks],
            "passed": self.passed,
        }


class Benchmark(Protocol):
    """A module of :mod:`simulations.benchmarks`.

    Attributes:
        SUMMARY: one line that says what is measured.
    """

    SUMMARY: str

    def run(self, *, quick: bool) -> BenchResult:
        """Measure.

        Args:
            quick: take seconds instead of minutes, by smaller sizes; limits need not hold.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asked of a benchmark that keeps its runs.

    Attributes:
        folder: where finished runs are kept.
        resume: whether those in it are taken as they are; else it must be empty.
        only: words that leave cases out; none leaves out nothing. The benchmark says which it
            knows.
    """

    folder: Path
    resume: bool = False
    only: tuple[str, ...] = ()


class KeepingBenchmark(Protocol):
    """A benchmark of many runs, whose finished ones outlive an interruption.

    Attributes:
        SUMMARY: one line that says what is measured.
        KEEPS_RUNS: True.
    """

    SUMMARY: str
    KEEPS_RUNS: bool

    def run(self, *, quick: bool, asked: Asked) -> BenchResult:
        """Measure what is missing in the folder.

        Args:
            quick: take seconds instead of hours, by smaller sizes; limits need not hold.
            asked: where runs are kept, and which.

        Raises:
            RunFolderExists: if the folder holds runs and nobody said to go on with them.
            InvalidValue: for a word that it does not know.
        """
        ...


class Plotting(Protocol):
    """A benchmark that draws."""

    def plot(self, result: BenchResult, path: Path) -> None:
        """Write an SVG file of a result.

        Raises:
            RunFolderError: if it cannot be written.
        """
        ...


def _plain(value: Scalar) -> Scalar:
    """Return a number that JSON has."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
