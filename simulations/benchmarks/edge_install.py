"""What a device without torch installs: size by package, time to import, memory before a round.

A fresh environment of ``fedslm[edge]`` is made by pip, from this source tree where it is one, with
the constraints of the tests; then ``fedslm client trim`` is run in it. The client in C++ is
compiled where there is a compiler, and counted with the libraries of ExecuTorch and OpenSSL. Sizes
are what the disk gives, pip and setuptools included, bytecode counted apart. Importing is the
processor's time of one process from its start, the least of seven, for all that a worker imports
before it trains. The node is what waits for a round; the worker begins when there is one. With
``--quick`` nothing is installed: the environment that runs the command is measured. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from client.trim import disk_size
from shared.errors import UsageError
from simulations.benchmarks import edge_native
from simulations.benchmarks.protocol import PROGRESS, BenchResult, Check, Scalar

SUMMARY = (
    "What a device without torch installs: size by package, import time, memory before a round."
)

INSTALL_MB = 450.0
NATIVE_MB = 250.0
_WITHOUT_FLOWER = "installed without Flower, native client"
IMPORT_SECONDS = 0.5
RESIDENT_MB = 100.0
_MB = 1e6
_LARGEST = 12
_TIMES = 7
_ROOT = Path(__file__).parents[2]
NODE = "import simulations.node_run, client.conditions, client.control, client.fleet.node"
WORKER = "import client.fleet.worker, client.app, client.edge.runtime"
LOADED = f"{WORKER}, onnxruntime, tokenizers"
_SAY = """
import json, time
spent = time.process_time()
lines = [line.split() for line in open("/proc/self/status")]
print(json.dumps([spent, *(int(line[1]) * 1024 for line in lines if line[0] == "VmRSS:")]))
"""


def run(*, quick: bool) -> BenchResult:
    """Install, measure, trim, and measure again.

    Raises:
        UsageError: on a system other than Linux, or if pip or the trimming failed.
    """
    if sys.platform != "linux":
        msg = "edge-install reads Linux's process table."
        raise UsageError(msg, hint="Run it on the device that it is about.")
    if quick:
        return _result(Path(sys.prefix), None, quick=True)
    with tempfile.TemporaryDirectory() as name:
        prefix = Path(name) / "edge"
        install(prefix)
        before = disk_size(prefix) / _MB
        PROGRESS.info("installed: %.0f MB", before)
        _finished([str(prefix / "bin" / "fedslm"), "client", "trim", "--json"])
        found = _result(prefix, before, quick=False)
        return with_native(found, edge_native.installed(Path(name) / "native"))


def with_native(found: BenchResult, rows: Sequence[Mapping[str, Scalar]]) -> BenchResult:
    """Add what a device without Python installs.

    Args:
        found: of the Python node.
        rows: what :func:`simulations.benchmarks.edge_native.installed` returned.
    """
    whole = next(row for row in rows if row["part"] == edge_native.WHOLE)
    checks = found.checks
    if "mb" in whole:
        size = float(whole["mb"] or 0)
        checks += (Check(name=_WITHOUT_FLOWER, measured=size, limit=NATIVE_MB, unit="MB"),)
    return replace(found, rows=(*found.rows, *rows), checks=checks)


def install(prefix: Path) -> None:
    """Make an environment of ``fedslm[edge]``.

    Raises:
        UsageError: if that fails.
    """
    from importlib.metadata import version

    _finished([sys.executable, "-m", "venv", str(prefix)])
    tree = (_ROOT / "pyproject.toml").exists()
    what = f"{_ROOT}[edge]" if tree else f"fedslm[edge]=={version('fedslm')}"
    pins = ["-c", str(_ROOT / "constraints" / "common.txt")] if tree else []
    command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins, what]
    _finished([str(prefix / "bin" / "python"), *command])


def sizes(prefix: Path) -> Counter[str]:
    """Return bytes on disk by package, with ``bytecode``, ``programs`` and ``other`` apart."""
    found: Counter[str] = Counter()
    for packages in sorted(prefix.glob("lib/python3*/site-packages")):
        for path in packages.iterdir():
            if path.name == "__pycache__":
                found["bytecode"] += disk_size(path)
                continue
            bytecode = sum(disk_size(one) for one in path.rglob("__pycache__"))
            found["bytecode"] += bytecode
            name = path.name.removesuffix(".libs").partition(".")[0].partition("-")[0]
            found[name if path.is_dir() else "other"] += disk_size(path) - bytecode
    found["programs"] = disk_size(prefix / "bin")
    found["other"] += disk_size(prefix) - found.total()
    return found


def _result(prefix: Path, before: float | None, *, quick: bool) -> BenchResult:
    """Measure an environment as it is."""
    by_size = sizes(prefix)
    rows: list[Mapping[str, Scalar]] = [] if before is None else [{"part": "whole", "mb": before}]
    total = by_size.total() / _MB
    rows.append({"part": "whole" if before is None else "whole, trimmed", "mb": total})
    largest = [name for name, _ in by_size.most_common(_LARGEST)]
    rows += [{"part": name, "mb": by_size[name] / _MB} for name in largest]
    rows.append({"part": "the others", "mb": total - sum(by_size[n] for n in largest) / _MB})
    node, worker, loaded = (_imported(prefix, code) for code in (NODE, WORKER, LOADED))
    for name, said in (("node, waiting", node), ("worker", worker), ("worker, runtime", loaded)):
        rows.append({"part": name, "import_s": said[0], "resident_mb": said[1] / _MB})
    return BenchResult(
        name="edge-install",
        parameters={"extra": "edge", "trimmed": not quick, "quick": quick},
        rows=tuple(rows),
        checks=(
            Check(name="installed, trimmed", measured=total, limit=INSTALL_MB, unit="MB"),
            Check(name="import of a worker", measured=worker[0], limit=IMPORT_SECONDS, unit="s"),
            Check(
                name="node, waiting for a round",
                measured=node[1] / _MB,
                limit=RESIDENT_MB,
                unit="MB",
            ),
        ),
    )


def _imported(prefix: Path, code: str) -> tuple[float, float]:
    """Return the processor seconds of some imports, and the bytes that are resident after them."""
    python = prefix / "bin" / "python"
    command = [str(python if python.exists() else sys.executable), "-c", code + _SAY]
    found = [json.loads(_finished(command).splitlines()[-1]) for _ in range(_TIMES)]
    return min(seconds for seconds, _ in found), float(min(size for _, size in found))


def _finished(command: list[str]) -> str:
    """Run a program and return what it printed.

    Raises:
        UsageError: if it failed, with the last line that it wrote.
    """
    # Neither this tree's modules nor its habit of writing no bytecode are the device's.
    home = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if command[0] == sys.executable:
        home["PYTHONPATH"] = str(_ROOT)
    done = subprocess.run(  # noqa: S603 - our own programs, no shell
        command, capture_output=True, text=True, check=False, env={**home, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        msg = f"{Path(command[0]).name} failed: {last[:300]}"
        raise UsageError(msg, hint="Run it by hand to see more.")
    return done.stdout
