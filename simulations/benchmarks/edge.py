"""Training and answering on a device, by runtime and by how the base is stored, beside PyTorch.

LoRA of rank 8 on the projections of queries and values, examples of 64 tokens that fill their
length, one at a time; answers of 32 tokens to prompts of 32, the likeliest token each time. The
embedded demo model, and random weights in the shape of SmolLM2-135M with 12 layers and 8,192 words
(47,200,320 parameters). Every point is a process of its own with one thread
(:mod:`simulations.benchmarks.edge_case`). Times are the processor's, the least of seven; ratios are
over PyTorch in float32, of the same run. Memory: ``process`` is the whole process at its largest,
``resident`` what it is once everything is imported that a worker imports, ``work`` and ``load``
what it is above that at work and while loading.

Energy is read from the processor's counters or a battery where there are any, and else left out.

``--only`` takes a shape, a runtime, a base, ``train`` or ``answer``; finished points are kept, and
``--resume`` goes on with the others.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from shared.files import write_text
from simulations.benchmarks.edge_points import FULL, QUICK, Found, Point, chosen, measured
from simulations.benchmarks.edge_runtimes import LENGTH, RANK, REFERENCE, RUNTIMES
from simulations.benchmarks.protocol import Asked, BenchResult, Check, Scalar
from simulations.svg import BLUE, GREEN, GREY, PURPLE, VERMILLION, as_file, legend, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUMMARY = "Training and answers on devices, by runtime and storage of the base, beside PyTorch."
KEEPS_RUNS = True

SHAPE = "47M"
TIME = 1.0
MEMORY_MB = 300.0
_LOW_BITS = ("int8", "int4", "nf4")
_COLOURS = (GREY, BLUE, VERMILLION, GREEN, PURPLE)
_MARKERS = {"fp32": "o", "bf16": "s", "int8": "D", "int4": "^", "nf4": "v"}
_MB = 1e6
Row = Mapping[str, Scalar]


def run(*, quick: bool, asked: Asked) -> BenchResult:
    """Measure what is missing of the grid, and compare.

    Args:
        quick: three points of a small shape.
        asked: where points are kept, and which are wanted.

    Raises:
        UsageError: on a system other than Linux.
        InvalidValue: for a word of ``asked.only`` that names nothing in the grid.
        RunFolderExists: if the folder holds points and nobody said to go on with them.
    """
    if sys.platform != "linux":
        msg = "edge reads Linux's process table."
        raise UsageError(msg, hint="Run it on the device that it is about.")
    points = chosen(QUICK if quick else FULL, asked.only)
    rows = rows_of(points, measured(points, asked))
    return BenchResult(
        name="edge",
        parameters={
            "rank": RANK,
            "sequence": LENGTH,
            "threads": 1,
            "clock": "process time",
            "quick": quick,
        },
        rows=tuple(rows),
        checks=checks_of(rows),
    )


def rows_of(points: Sequence[Point], found: Sequence[Found]) -> list[Row]:
    """Return a row for each point.

    Args:
        points: what was measured.
        found: what :func:`simulations.benchmarks.edge_points.measured` returned of each.
    """
    known = dict(zip(points, found, strict=True))
    references = {
        (point.shape, point.what): said
        for point, said in known.items()
        if (point.runtime, point.base) == REFERENCE and said["status"] == "measured"
    }
    rows: list[Row] = []
    for point, said in known.items():
        row: dict[str, Scalar] = {
            "shape": point.shape,
            "what": point.what,
            "runtime": point.runtime,
            "base": point.base,
            "status": ": ".join(filter(None, (said["status"], said.get("message")))),
        }
        if said["status"] == "measured":
            row |= _numbers(said, references.get((point.shape, point.what)))
        rows.append(row)
    return rows


def checks_of(rows: Sequence[Row]) -> tuple[Check, ...]:
    """Return the promises about training without torch, at the base that keeps them best.

    There are none where the large shape was not measured.
    """
    low = [
        row
        for row in rows
        if row["shape"] == SHAPE
        and row["what"] == "train"
        and row["status"] == "measured"
        and row["base"] in _LOW_BITS
        and not RUNTIMES[str(row["runtime"])].torch
    ]
    if not low:
        return ()
    best = min(low, key=lambda row: max(_of(row, "time_ratio"), _of(row, "process_mb") / MEMORY_MB))
    where = f"{best['runtime']} {best['base']}, {SHAPE}"
    return (
        Check(
            name=f"an example over PyTorch fp32, time ({where})",
            measured=_of(best, "time_ratio"),
            limit=TIME,
            unit="x",
        ),
        Check(
            name=f"whole process while training ({where})",
            measured=_of(best, "process_mb"),
            limit=MEMORY_MB,
            unit="MB",
        ),
    )


def plot(result: BenchResult, path: Path) -> None:
    """Draw the time of an example against the whole process, as an SVG file.

    A colour is a runtime, a marker a storage of the base: labels would lie on each other.

    Args:
        result: what :func:`run` returned.
        path: of the file; an existing one is replaced.
    """

    def draw(axes: Axes) -> None:
        rows = [row for row in result.rows if "ms" in row and row["what"] == "train"]
        shapes = [str(row["shape"]) for row in rows]
        rows = [row for row in rows if row["shape"] == shapes[-1]]
        colours = dict(zip((n for n, r in RUNTIMES.items() if r.trains), _COLOURS, strict=False))
        for row in rows:
            colour, marker = colours[str(row["runtime"])], _MARKERS[str(row["base"])]
            axes.plot(_of(row, "ms"), _of(row, "process_mb"), marker, color=colour, ms=7, alpha=0.8)
        for runtime in dict.fromkeys(str(row["runtime"]) for row in rows):
            axes.plot([], [], "s", color=colours[runtime], label=runtime, ms=8)
        bases = [base for base in _MARKERS if base in {row["base"] for row in rows}]
        keys = [axes.plot([], [], _MARKERS[base], color=GREY, ms=7)[0] for base in bases]
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("ms of one core for an example")
        axes.set_ylabel("whole process (MB)")
        if rows:
            legend(axes)
            axes.figure.legend(keys, bases, loc="outside right upper")

    write_text(path, as_file(render(draw), title=SUMMARY))


def _numbers(said: Found, reference: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Return the numbers of one row."""
    numbers: dict[str, Scalar] = {
        "files_mb": said["files_bytes"] / _MB,
        "load_s": said["load_seconds"],
        "load_mb": said["load_peak_bytes"] / _MB,
        "resident_mb": said["resident_bytes"] / _MB,
        "work_mb": said["peak_bytes"] / _MB,
        "process_mb": said["process_bytes"] / _MB,
    }
    spent = _seconds(said)
    numbers["ms"] = 1e3 * spent
    if "tokens_per_second" in said:
        numbers["tokens_per_s"] = max(said["tokens_per_second"])
    if reference is not None:
        numbers["time_ratio"] = spent / _seconds(reference)
        if "tokens_per_second" in said:
            best = max(reference["tokens_per_second"])
            numbers["rate_ratio"] = max(said["tokens_per_second"]) / best
        numbers["memory_ratio"] = said["process_bytes"] / reference["process_bytes"]
    return {**numbers, "energy": said["energy"], "joules": said["joules"]}


def _seconds(said: Mapping[str, Any]) -> float:
    """Return the time of an example, or of the first token of an answer."""
    return float(min(said["seconds"] if "seconds" in said else said["first_token_seconds"]))


def _of(row: Row, column: str) -> float:
    """Return a number of a row; NaN where there is none."""
    value = row.get(column)
    return float(value) if isinstance(value, int | float) else math.nan
