"""`make demo` and `make test`: what they say when something is missing, and that they repeat.

A stand-in for Python plays a machine that lacks something; the real installation is what
`.ci/run` does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), *arguments, f"VENV={venv}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def python_whose_pip(folder: Path, pip: str) -> Path:
    """Make an interpreter whose environments have this pip, and a fedslm that greets."""
    inner = folder / "inner"
    script(inner / "python", f'echo "$@" >> {folder}/calls; {pip}')
    script(inner / "fedslm", 'echo "ran $@"')
    body = f'if [ "$2" = venv ]; then mkdir -p "$4" && cp -r {inner} "$4/bin"; fi'
    return script(folder / "python", body)


def test_help_is_what_a_bare_make_shows(tmp_path: Path) -> None:
    shown = make(tmp_path / "venv").stdout
    assert "make demo" in shown
    assert "make test" in shown
    assert "make aarch64" in shown
    assert shown == make(tmp_path / "venv", "help").stdout


def test_no_python(tmp_path: Path) -> None:
    done = make(tmp_path / "venv", "demo", "PYTHON=")
    assert done.returncode != 0
    assert "No Python of at least 3.11 was found" in done.stderr


def test_a_python_that_does_not_start(tmp_path: Path) -> None:
    done = make(tmp_path / "venv", "demo", f"PYTHON={tmp_path}/none")
    assert done.returncode != 0
    assert "does not start" in done.stderr


def test_a_python_without_venv(tmp_path: Path) -> None:
    python = script(tmp_path / "python", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make(tmp_path / "venv", "demo", f"PYTHON={python}")
    assert done.returncode != 0
    assert "python3-venv" in done.stderr
    assert not (tmp_path / "venv" / "created").exists()


def test_an_unknown_build_of_torch(tmp_path: Path) -> None:
    python = python_whose_pip(tmp_path, "exit 0")
    done = make(tmp_path / "venv", "demo", f"PYTHON={python}", "TORCH=rocm")
    assert done.returncode != 0
    assert "TORCH=rocm, expected cpu or cuda" in done.stderr


def test_no_cpu_build_of_torch_to_be_found(tmp_path: Path) -> None:
    complaint = "ERROR: No matching distribution found for torch==2.13.0+cpu"
    python = python_whose_pip(tmp_path, f'echo "{complaint}"; exit 1')
    done = make(tmp_path / "venv", "demo", f"PYTHON={python}")
    assert done.returncode != 0
    assert complaint in done.stderr
    assert "PIP_EXTRA_INDEX_URL" in done.stderr
    assert "TORCH=cuda" in done.stderr


def test_a_failed_installation_is_tried_again(tmp_path: Path) -> None:
    python = python_whose_pip(tmp_path, "exit 1")
    for expected_calls in (1, 2):
        done = make(tmp_path / "venv", "demo", f"PYTHON={python}")
        assert done.returncode != 0
        assert "The installation failed" in done.stderr
        assert len((tmp_path / "calls").read_text().splitlines()) == expected_calls


def test_the_second_run_installs_nothing(tmp_path: Path) -> None:
    python = python_whose_pip(tmp_path, "exit 0")
    first = make(tmp_path / "venv", "demo", f"PYTHON={python}")
    second = make(tmp_path / "venv", "demo", f"PYTHON={python}")
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert "Installing" in first.stdout
    assert second.stdout == "ran simulate quickstart\n"
    assert len(calls) == 2  # the build backend, then the project, both under the pins
    assert all("-c constraints/cpu.txt" in call for call in calls)


def test_the_ci_script_is_sound_and_calls_make_test() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.read_text(encoding="utf-8").rstrip().endswith("exec make test")
