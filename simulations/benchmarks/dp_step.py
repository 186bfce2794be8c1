"""A private step's gradients against those of plain training and of the field, in time and memory.

LoRA of rank 8 on every linear layer, both factors, on llamas of random weights. Sequences are full:
nothing is padded, which is what favours the engine ``microbatch`` the least. Time is the
processor's in one thread; engines take turns, and a ratio is the median of the ratios of one turn
each, with the least and the largest. Memory is the peak above what was resident before the step, in
a fork of the process with the model loaded. See :mod:`simulations.benchmarks.dp_step_case`.

The grid (:mod:`simulations.benchmarks.dp_step_points`) is not full: where a step takes seconds, the
engines that are nowhere near the front at any smaller point are left out. Points that are finished
are kept, and ``--resume`` goes on with the others; ``--only`` chooses.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from shared.files import write_text
from simulations.benchmarks.dp_step_case import ALPHA, RANK
from simulations.benchmarks.dp_step_peers import NON_PRIVATE, OURS, PEERS
from simulations.benchmarks.dp_step_points import (
    FULL,
    PROMISED_BATCH,
    QUICK,
    SHAPES,
    Found,
    Point,
    chosen,
    measured,
)
from simulations.benchmarks.protocol import Asked, BenchResult, Check, Scalar
from simulations.svg import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PURPLE,
    VERMILLION,
    legend,
    plain_numbers,
    render,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUMMARY = "A private step against a plain one, Opacus, vmap and dp-lora: time, memory, exactness."
KEEPS_RUNS = True

FUSED_TIME = 1.03
FUSED_MEMORY = 1.0
MICROBATCH_TIME = 1.10
MICROBATCH_MEMORY = 0.25
ERROR = 1e-6
_MARKS = {
    "fused": (BLUE, "o"),
    "microbatch": (VERMILLION, "s"),
    "opacus": (GREY, "x"),
    "opacus-hooks": (GREEN, "^"),
    "opacus-functorch": (GREEN, "v"),
    "opacus-ghost": (GREEN, "D"),
    "vmap": (PURPLE, "P"),
    "dp-lora": (INK, "*"),
}
_MB = 1e6
Row = Mapping[str, Scalar]


def run(*, quick: bool, asked: Asked) -> BenchResult:
    """Measure what is missing of the grid, and compare.

    Args:
        quick: two points of a smaller shape.
        asked: where points are kept, and which are wanted.

    Raises:
        UsageError: on a system other than Linux.
        InvalidValue: for a word of ``asked.only`` that names nothing in the grid.
        RunFolderExists: if the folder holds points and nobody said to go on with them.
    """
    if sys.platform != "linux":
        msg = "dp-step reads Linux's process table."
        raise UsageError(msg, hint="Run it on the device that it is about.")
    points = chosen(QUICK if quick else FULL, asked.only)
    found = measured(points, asked)
    rows = [row for point, said in zip(points, found, strict=True) for row in rows_of(point, said)]
    shapes = dict.fromkeys(point.shape for point in points)
    return BenchResult(
        name="dp-step",
        parameters={
            "rank": RANK,
            "alpha": ALPHA,
            "factors": "AB",
            "threads": 1,
            "clock": "process time",
            **{f"parameters_{shape}": SHAPES[shape].parameters for shape in shapes},
            "quick": quick,
        },
        rows=tuple(rows),
        checks=checks_of(rows),
    )


def rows_of(point: Point, found: Found) -> list[Row]:
    """Return one row for each engine of a point.

    Args:
        point: what was measured.
        found: what :func:`simulations.benchmarks.dp_step_points.measured` returned of it.

    Returns:
        Rows with ``seconds`` (median), ``time_ratio`` to the non-private step with ``time_least``
        and ``time_most`` (of the turns), ``fused_ratio`` (the fused engine's time over this one's,
        the median of the turns), ``peak_mb`` (of 1e6 bytes), ``memory_ratio`` and ``error``; and
        with ``status`` alone where an engine could not be measured.
    """
    rows: list[Row] = []
    for engine in point.engines:
        said = found[engine]
        row: dict[str, Scalar] = {
            "shape": point.shape,
            "base": point.base,
            "sequence": point.sequence,
            "batch": point.batch,
            "engine": engine,
            "status": said["status"],
        }
        if said["status"] == "measured":
            row |= _numbers(said, found[NON_PRIVATE], found.get("fused", {}))
        rows.append(row)
    return rows


def checks_of(rows: Sequence[Row]) -> tuple[Check, ...]:
    """Return the promises, each at the point of the grid where it is kept the least.

    A number that is missing where it should be fails its check.
    """
    fused = _of(rows, "fused")
    small = [row for row in _of(rows, "microbatch") if row["batch"] == PROMISED_BATCH]
    peers = _of(rows, *PEERS)
    exact = [row for row in _of(rows, *OURS) if row["base"] != "bf16"]
    of_four = f"at batch {PROMISED_BATCH}"
    return (
        _check("fused over non-private, time", fused, "time_ratio", FUSED_TIME),
        _check("fused over non-private, memory", fused, "memory_ratio", FUSED_MEMORY),
        _check(
            f"microbatch over non-private, time, {of_four}", small, "time_ratio", MICROBATCH_TIME
        ),
        _check(
            f"microbatch over non-private, memory, {of_four}",
            small,
            "memory_ratio",
            MICROBATCH_MEMORY,
        ),
        _check("fused over the best peer, time", _working(peers), "fused_ratio", 1.0),
        _check("fused over the best peer, memory", _working(peers), "fused_memory_ratio", 1.0),
        _check("distance of ours from the truth (not bf16)", exact, "error", ERROR),
    )


def plot(result: BenchResult, path: Path) -> None:
    """Draw time against memory, one mark for each engine at each point, as an SVG file.

    Args:
        result: what :func:`run` returned.
        path: of the file; an existing one is replaced.
    """

    def draw(axes: Axes) -> None:
        for engine, (colour, marker) in _MARKS.items():
            rows = [row for row in _of(result.rows, engine) if "memory_ratio" in row]
            times = [float(row["time_ratio"] or math.nan) for row in rows]
            memories = [float(row["memory_ratio"] or math.nan) for row in rows]
            if rows:
                axes.plot(times, memories, marker, color=colour, label=engine, fillstyle="none")
        axes.axhline(1.0, color=GREY, linewidth=1)
        axes.axvline(1.0, color=GREY, linewidth=1)
        axes.set_yscale("log")
        axes.set_xlabel("time, over a step without privacy")
        axes.set_ylabel("memory, over the same")
        plain_numbers(axes)
        legend(axes)

    write_text(path, render(draw) + "\n")


def _numbers(
    said: Mapping[str, Any], plain: Mapping[str, Any], fused: Mapping[str, Any]
) -> dict[str, Scalar]:
    """Return the numbers of one engine's row."""
    seconds: list[float] = said["seconds"]
    numbers: dict[str, Scalar] = {"seconds": statistics.median(seconds)}
    if "seconds" in plain:
        ratios = _ratios(seconds, plain["seconds"])
        numbers["time_ratio"] = statistics.median(ratios)
        numbers["time_least"] = min(ratios)
        numbers["time_most"] = max(ratios)
    if "seconds" in fused:
        numbers["fused_ratio"] = statistics.median(_ratios(fused["seconds"], seconds))
    peak = int(said["peak_bytes"])
    numbers["peak_mb"] = peak / _MB
    if "peak_bytes" in plain:
        numbers["memory_ratio"] = _over(peak, plain["peak_bytes"])
    if "peak_bytes" in fused:
        numbers["fused_memory_ratio"] = _over(fused["peak_bytes"], peak)
    numbers["error"] = said["error"]
    return numbers


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of each turn."""
    return [_over(a, b) for a, b in zip(above, below, strict=True)]


def _over(above: float, below: float) -> float:
    """Return a quotient; NaN where there is none."""
    return above / below if below > 0 else math.nan


def _of(rows: Sequence[Row], *engines: str) -> list[Row]:
    """Return the rows of some engines, but for those of a base that this machine cannot hold."""
    absent = {"no bf16 here", "not installed"}
    return [row for row in rows if row["engine"] in engines and row["status"] not in absent]


def _working(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the engines that gave a result; no peer has to."""
    return [row for row in rows if row["status"] == "measured"]


def _check(name: str, rows: Sequence[Row], column: str, limit: float) -> Check:
    """Return the check on the largest number of a column."""
    numbers = [row.get(column) for row in rows]
    known = [number for number in numbers if isinstance(number, float)]
    complete = bool(known) and len(known) == len(numbers) and not any(map(math.isnan, known))
    return Check(
        name=f"{name}, worst point",
        measured=max(known) if complete else math.nan,
        limit=limit,
        unit="x",
    )
