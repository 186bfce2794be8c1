"""Running built-in scenarios as a person would, for tests of what the README promises."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"

QUICKSTART = 2.721
"""Held-out loss at the end of the quickstart (README)."""
NOISE_OF_ONE_RUN = 0.2
"""Three seeds of the quickstart end within 0.15 of each other (docs/log.md)."""


def simulate(folder: Path, scenario: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "simulations.cli", "simulate", scenario, "--json"]
    done = subprocess.run(
        [*command, "--out", str(folder / "run"), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def processor_seconds() -> float:
    """Return the processor time of all commands that ended; waiting for a busy machine is none."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
