"""The points of the benchmark ``edge``: measured, or kept from before.

A point is a runtime, a way of storing the base, a shape, and training or answering; it is measured
in a process of its own and kept in a file of its own. What devices are given is made when a point
needs it and lies in ``prepared`` until the last point is finished.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.files import write_json
from simulations.benchmarks import edge_native
from simulations.benchmarks.edge_case import Case
from simulations.benchmarks.edge_runtimes import RUNTIMES
from simulations.benchmarks.finished import open_kept
from simulations.benchmarks.footprintmodel import SMALL, Shape, write_base
from simulations.benchmarks.protocol import PROGRESS, Asked
from simulations.benchmarks.quality_select import selected

# As SmolLM2-135M with two fifths of the layers and a sixth of the words.
M47 = Shape(hidden=576, inner=1536, layers=12, heads=9, kv_heads=3, vocabulary=8_192)
SHAPES: Mapping[str, Shape | None] = {"demo": None, "1M": SMALL, "47M": M47}
DEMO = Path(__file__).parents[1] / "assets" / "demo"
Found = Mapping[str, Any]
_PREPARED = "prepared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point.

    Attributes:
        shape: a key of :data:`SHAPES`; ``"demo"`` is the embedded model.
        runtime: a key of :data:`simulations.benchmarks.edge_runtimes.RUNTIMES`.
        base: how the frozen weights are stored.
        what: ``"train"`` or ``"answer"``.
        repetitions: of what is timed.
    """

    shape: str
    runtime: str
    base: str
    what: str
    repetitions: int = 5

    @property
    def name(self) -> str:
        """Return what tells the point from others, and from itself under another plan."""
        return f"{self.shape}-{self.runtime}-{self.base}-{self.what}-{self.repetitions}"


def grid(shapes: Sequence[str], repetitions: int) -> tuple[Point, ...]:
    """Return every runtime and storage at some shapes."""
    return tuple(
        Point(shape=shape, runtime=name, base=base, what=what, repetitions=repetitions)
        for shape in shapes
        for name, runtime in RUNTIMES.items()
        for what in ("train", "answer")
        for base in runtime.bases(what)
    )


FULL = grid(("demo", "47M"), 7)
QUICK = tuple(
    Point(shape="1M", runtime=runtime, base=base, what=what, repetitions=1)
    for runtime, base, what in (
        ("pytorch", "fp32", "train"),
        ("onnx", "int4", "train"),
        ("pytorch", "fp32", "answer"),
    )
)


def chosen(points: Sequence[Point], words: Sequence[str]) -> tuple[Point, ...]:
    """Return the points that some words leave in.

    Args:
        points: the grid.
        words: a shape such as ``47M``, a runtime, a base such as ``int4``, ``train`` or ``answer``.

    Raises:
        InvalidValue: for a word that names nothing in the grid.
    """
    axes = {
        axis: tuple(dict.fromkeys(str(getattr(point, axis)) for point in points))
        for axis in ("shape", "runtime", "base", "what")
    }
    left = selected(axes, words)
    return tuple(
        point
        for point in points
        if all(getattr(point, axis) in values for axis, values in left.items())
    )


def measured(points: Sequence[Point], asked: Asked) -> list[Found]:
    """Measure the points that the folder does not hold, and return what was found of all.

    Args:
        points: in the order in which they are measured.
        asked: where points are kept, and whether those that are there may be taken as they are.

    Returns:
        What :mod:`simulations.benchmarks.edge_case` said of each; ``status`` alone where a runtime
        is not installed or cannot do it.

    Raises:
        RunFolderExists: if the folder holds points and ``asked.resume`` is False.
        CalledProcessError: if a point's process failed; finished points stay.
    """
    open_kept(asked, of="points")
    found: list[Found] = []
    for number, point in enumerate(points, start=1):
        path = asked.folder / f"{point.name}.json"
        began, known = time.monotonic(), path.exists()
        if not known:
            write_json(path, _measure(point, asked.folder / _PREPARED))
        found.append(json.loads(path.read_text(encoding="utf-8")))
        took = "kept" if known else f"{found[-1]['status']}, {time.monotonic() - began:.0f} s"
        PROGRESS.info("point %d of %d: %s: %s", number, len(points), point.name, took)
    shutil.rmtree(asked.folder / _PREPARED, ignore_errors=True)
    return found


def _measure(point: Point, prepared: Path) -> Found:
    """Prepare what a point needs and measure it."""
    missing = RUNTIMES[point.runtime].missing()
    if missing is not None:
        return {"status": missing}
    base = _base(point.shape, prepared)
    folder = prepared / f"{point.shape}-{point.runtime}-{point.base}-{point.what}"
    case = Case(
        runtime=point.runtime,
        quantization=point.base,
        what=point.what,
        base=str(base),
        folder=str(folder),
        vocabulary=json.loads((base / "config.json").read_text("utf-8"))["vocab_size"],
        repetitions=point.repetitions,
    )
    if not folder.exists():
        said = _ask("prepare", case)
        if said["status"] != "prepared":
            shutil.rmtree(folder, ignore_errors=True)
            return said
    return (
        edge_native.measured(case) if point.runtime == edge_native.NAME else _ask(point.what, case)
    )


def _base(shape: str, prepared: Path) -> Path:
    """Return the folder of a base model; one of random weights is written once."""
    described = SHAPES[shape]
    if described is None:
        return DEMO
    folder = prepared / f"base-{shape}"
    if not folder.exists():
        write_base(folder, described)
    return folder


def _ask(what: str, case: Case) -> Found:
    """Let a process of its own do it."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # As client.fleet.child starts a worker.
    settings = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [sys.executable, "-m", "simulations.benchmarks.edge_case", what, case.to_json()]
    said = subprocess.run(  # noqa: S603 - our own program, no shell
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **settings}
    )
    found: Found = json.loads(said.stdout.splitlines()[-1])
    return found
