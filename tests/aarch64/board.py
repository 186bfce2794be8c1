"""The board that ``packaging/arm64.py`` made, and how to run something on it."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
ROOT = Path(os.environ.get("FEDSLM_ARM64_ROOT", PROJECT / "build" / "arm64")).resolve()
ONBOARD = PROJECT / "tests" / "aarch64" / "onboard.py"
_SCRIPT: dict[str, Any] = runpy.run_path(str(PROJECT / "packaging" / "arm64.py"))
PYTHON = f"{_SCRIPT['ENVIRONMENT']}/bin/python"
NATIVE = f"{_SCRIPT['NATIVE']}/fedslm-native"
inside: Callable[..., list[str]] = _SCRIPT["inside"]


def on_board(*words: str | Path, **variables: str) -> str:
    """Run a command of the board and return what it printed."""
    done = subprocess.run(
        inside(ROOT, *words, **variables), capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


def computed(*words: str | Path) -> str:
    """Run :mod:`tests.aarch64.onboard` on the board."""
    return on_board(PYTHON, "-c", ONBOARD.read_text(encoding="utf-8"), *words)


def computed_here(*words: str | Path) -> str:
    """Run the same here."""
    done = subprocess.run(
        [sys.executable, str(ONBOARD), *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
    )
    return done.stdout


def native_on_board(folder: Path) -> Path:
    """Write a program of here that is the native client of the board."""
    path = folder / "fedslm-native"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(inside(ROOT, NATIVE))} "$@"\n', encoding="utf-8")
    path.chmod(0o700)
    return path
