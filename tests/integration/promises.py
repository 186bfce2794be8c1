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


_INCONCLUSIVE = 2
UNAUDITED = ("--set", "audit.profile=none")
"""Of a run of which no audit is read; the same adapter."""
SOME_CLIENTS = ("--set", "evaluation.final_clients=250")
"""A sample for the mean of a thousand: clients' losses deviate by 0.2 (quickstart) and 0.42
(shakespeare-1000), so it has a standard error under 0.03, where margins are 0.16 and more."""


def simulate(folder: Path, scenario: str, *arguments: str) -> dict[str, Any]:
    """Run a scenario into a folder; returns its summary."""
    return fedslm("simulate", scenario, "--out", str(folder / "run"), *arguments)


def attack(folder: Path, *audits: str) -> dict[str, Any]:
    """Attack a run that was not audited, with nothing to compare with; returns the report."""
    only = [word for name in audits for word in ("--only", name)]
    # Without its control an audit is inconclusive, whatever it finds.
    words = ("audit", "run", str(folder / "run"), "--control", "none", *only)
    return fedslm(*words, code=_INCONCLUSIVE)


def fedslm(*words: str, code: int = 0) -> dict[str, Any]:
    """Run a command that leaves with a code; returns what it says as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", *words, "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def processor_seconds() -> float:
    """Return the processor time of all commands that ended; waiting for a busy machine is none."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
