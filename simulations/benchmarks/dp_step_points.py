"""The grid of ``dp-step``, and the points of it that are measured or kept from before.

A point's memory and its time are measured in a process each and kept in a file each: an
interrupted benchmark goes on with ``--resume``. Ratios are made of one point's turns, so that it
does not matter to them when others were measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.files import write_json
from simulations.benchmarks.dp_step_case import Case
from simulations.benchmarks.dp_step_peers import NON_PRIVATE, STEPS
from simulations.benchmarks.finished import open_kept
from simulations.benchmarks.footprintmodel import M135, SMALL, Shape, write_base
from simulations.benchmarks.protocol import PROGRESS, Asked
from simulations.benchmarks.quality_select import selected

M7 = Shape(hidden=256, inner=704, layers=7, heads=4, kv_heads=2, vocabulary=8_192)
M30 = Shape(hidden=384, inner=1024, layers=11, heads=6, kv_heads=2, vocabulary=32_768)
SHAPES: Mapping[str, Shape] = {"1M": SMALL, "7M": M7, "30M": M30, "135M": M135}
ALL = tuple(STEPS)
FRONT = (NON_PRIVATE, "fused", "microbatch", "opacus-hooks", "vmap", "dp-lora")

PROMISED_BATCH = 4
Found = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of the grid.

    Attributes:
        shape: a key of :data:`SHAPES`.
        base: how the frozen weights are held.
        sequence: tokens of an example.
        batch: number of examples.
        engines: which are measured.
        repetitions: timed steps of each.
    """

    shape: str
    base: str
    sequence: int
    batch: int = PROMISED_BATCH
    engines: tuple[str, ...] = ALL
    repetitions: int = 3

    @property
    def name(self) -> str:
        """Return what tells the point from others, and from itself under another plan."""
        engines = "all" if self.engines == ALL else "front" if self.engines == FRONT else "some"
        return f"{self.shape}-{self.base}-{self.sequence}-{self.batch}-{engines}-{self.repetitions}"


FULL = (
    *(Point(shape="7M", base="fp32", sequence=length, repetitions=7) for length in (64, 128, 256)),
    Point(shape="7M", base="fp32", sequence=512, repetitions=5),
    Point(shape="7M", base="fp32", sequence=128, batch=1, repetitions=7),
    Point(shape="7M", base="fp32", sequence=128, batch=8, repetitions=5),
    *(
        Point(shape="7M", base=base, sequence=128, repetitions=5)
        for base in ("bf16", "int8", "nf4")
    ),
    Point(shape="30M", base="fp32", sequence=64, repetitions=5),
    Point(shape="30M", base="fp32", sequence=256),
    *(
        Point(shape="30M", base=base, sequence=128, engines=FRONT)
        for base in ("bf16", "int8", "nf4")
    ),
    Point(shape="135M", base="fp32", sequence=64),
    *(
        Point(shape="135M", base=base, sequence=64, engines=FRONT)
        for base in ("bf16", "int8", "nf4")
    ),
    Point(shape="135M", base="fp32", sequence=256, engines=FRONT),
)
QUICK = (
    Point(shape="1M", base="fp32", sequence=32),
    Point(shape="1M", base="nf4", sequence=32, engines=FRONT),
)


def chosen(points: Sequence[Point], words: Sequence[str]) -> tuple[Point, ...]:
    """Return the points that some words leave in.

    Args:
        points: the grid.
        words: a shape such as ``7M``, a base such as ``nf4``, ``sequence=64`` or ``batch=4``.

    Raises:
        InvalidValue: for a word that names nothing in the grid.
    """
    axes = {
        axis: tuple(dict.fromkeys(str(getattr(point, axis)) for point in points))
        for axis in ("shape", "base", "sequence", "batch")
    }
    left = selected(axes, words)
    return tuple(
        point
        for point in points
        if all(str(getattr(point, axis)) in values for axis, values in left.items())
    )


def measured(points: Sequence[Point], asked: Asked) -> list[Found]:
    """Measure the points that the folder does not hold, and return what was found of all.

    Args:
        points: in the order in which they are measured.
        asked: where points are kept, and whether those that are there may be taken as they are.

    Returns:
        What :mod:`simulations.benchmarks.dp_step_case` said of each.

    Raises:
        RunFolderExists: if the folder holds points and ``asked.resume`` is False.
        CalledProcessError: if a point's process failed; finished points stay.
    """
    open_kept(asked, of="points")
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as name:
        for number, point in enumerate(points, start=1):
            began = time.monotonic()
            memory, kept_memory = _known_or_measured("memory", point, asked.folder, Path(name))
            times, kept_time = _known_or_measured("time", point, asked.folder, Path(name))
            found.append({engine: joined(memory[engine], times[engine]) for engine in memory})
            kept = kept_memory and kept_time
            took = "kept" if kept else f"{time.monotonic() - began:.0f} s"
            PROGRESS.info("point %d of %d: %s: %s", number, len(points), point.name, took)
    return found


def joined(memory: Mapping[str, Any], times: Mapping[str, Any]) -> dict[str, Any]:
    """Return both halves of what was found of an engine; an engine that failed in one, failed."""
    failed = [half for half in (memory, times) if half["status"] != "measured"]
    return {**memory, **times} if not failed else {"status": failed[0]["status"]}


def _known_or_measured(what: str, point: Point, folder: Path, home: Path) -> tuple[Found, bool]:
    """Return one half of a point, and whether it was kept from before."""
    path = folder / f"{point.name}.{what}.json"
    known = path.exists()
    if not known:
        write_json(path, _measure(what, point, home))
    found: Found = json.loads(path.read_text(encoding="utf-8"))
    return found, known


def _measure(what: str, point: Point, home: Path) -> Found:
    """Measure a point in a process of its own, on a base that is written once for each shape."""
    folder = home / point.shape
    if not folder.exists():
        write_base(folder, SHAPES[point.shape])
    case = Case(
        folder=str(folder),
        base=point.base,
        sequence=point.sequence,
        batch=point.batch,
        engines=point.engines,
        repetitions=point.repetitions,
    )
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "simulations.benchmarks.dp_step_case", what, case.to_json()]
    said = subprocess.run(  # noqa: S603 - our own program, no shell
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
    )
    found: Found = json.loads(said.stdout)
    return found
