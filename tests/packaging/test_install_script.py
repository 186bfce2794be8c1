"""The install script: it is valid, it says what it would do, and it refuses what cannot work."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "packaging" / "install-node.sh"
BASH = shutil.which("bash") or "/bin/bash"

pytestmark = pytest.mark.skipif(not Path(BASH).exists(), reason="bash is not installed")


def dry(home: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "FED"))}
    return subprocess.run(
        [BASH, str(SCRIPT), "--dry-run", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**kept, "HOME": str(home), **environment},
    )


def tool(folder: Path, name: str, body: str) -> None:
    """Put a program of a name into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_it_is_valid_and_can_be_run() -> None:
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run([BASH, "-n", str(SCRIPT)], check=True, timeout=30)


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, str(SCRIPT)], check=True, timeout=60)


def test_a_dry_run_says_everything_and_changes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "notes.jsonl"
    data.write_text("{}\n", encoding="utf-8")
    run = dry(tmp_path / "h", "--data", str(data), FEDSLM_TOKEN="fedslm1.abc")
    assert run.returncode == 0, run.stderr
    for word in (
        "machine: ",
        "python: 3.",
        "-m venv ",
        "-c " + str(ROOT / "constraints" / "cpu.txt"),
        "would enrol",
        "would write",
        "enable --now fedslm-client.service",
        "enable-linger",
        "nothing was changed",
    ):
        assert word in run.stdout, word
    assert "fedslm1.abc" not in run.stdout + run.stderr
    assert list((tmp_path / "h").iterdir()) == []


def test_what_is_done_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "h"
    prefix = home / ".local" / "lib" / "fedslm"
    first = dry(home)
    [stamp] = [line.split()[-1] for line in first.stdout.splitlines() if "would run: touch" in line]
    tool_folder = prefix / "bin"
    tool_folder.mkdir(parents=True)
    tool(tool_folder, "fedslm", "exit 0")
    Path(stamp).touch()
    device = home / ".local" / "share" / "fedslm"
    device.mkdir(parents=True)
    (device / "node.toml").touch()
    units = home / ".config" / "systemd" / "user"
    units.mkdir(parents=True)
    unit = (ROOT / "packaging" / "systemd" / "fedslm-client.service").read_text(encoding="utf-8")
    unit = unit.replace("%h/.local/lib/fedslm", str(prefix))
    unit = unit.replace("%h/.local/share/fedslm", str(device))
    (units / "fedslm-client.service").write_text(unit, encoding="utf-8")
    run = dry(home)
    assert run.returncode == 0, run.stderr
    assert "installed already" in run.stdout
    assert "done already" in run.stdout
    assert "is up to date" in run.stdout
    assert "pip" not in run.stdout


def installed(home: Path) -> Path:
    """Return a prefix with a program of an earlier version, enrolled."""
    prefix = home / ".local" / "lib" / "fedslm"
    tool_folder = prefix / "bin"
    tool_folder.mkdir(parents=True)
    tool(tool_folder, "fedslm", "exit 0")
    (prefix / "installed-client-1").touch()
    device = home / ".local" / "share" / "fedslm"
    device.mkdir(parents=True)
    (device / "node.toml").touch()
    return prefix


def test_another_version_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """And the way back is the same: the old stamp is gone, and the running node is restarted."""
    prefix = installed(tmp_path / "h")
    run = dry(tmp_path / "h")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    said = [line for line in lines if line.startswith("would run: ")]
    removed = next(i for i, line in enumerate(said) if "rm -f" in line)
    assert str(prefix / "installed-client-1") in said[removed]
    assert "touch" in said[removed + 1]
    assert said[-2].endswith("try-restart fedslm-client.service")
    assert "done already" in run.stdout


def test_a_node_without_torch_needs_less(tmp_path: Path) -> None:
    # What is piped into it is read: df must not end by a broken pipe.
    tool(tmp_path / "bin", "awk", "[ $# -gt 1 ] || cat >/dev/null; echo 900")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    run = dry(tmp_path / "h", "--edge", PATH=path)
    assert run.returncode == 1  # 900 is the memory and the disk of this awk
    assert "900 MiB are free" in run.stderr
    run = dry(tmp_path / "h", "--edge")
    assert run.returncode == 0, run.stderr
    assert r"\[edge\]" in run.stdout
    assert "[client]" not in run.stdout


def test_an_arm_board_gets_no_cuda(tmp_path: Path) -> None:
    tool(tmp_path / "bin", "uname", "echo aarch64")
    run = dry(tmp_path / "h", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert run.returncode == 0, run.stderr
    assert f"-c {ROOT / 'constraints' / 'aarch64.txt'}" in run.stdout
    assert "cpu.txt" not in run.stdout


def test_without_a_token_there_is_no_service(tmp_path: Path) -> None:
    run = dry(tmp_path / "h")
    assert run.returncode == 0
    assert "not enrolled and no token" in run.stderr
    assert "service: not installed" in run.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--colour",), "unknown option --colour"),
        (("--home",), "--home needs a value"),
        (("--source", "/"), "neither the folder of the sources nor a wheel"),
        (("--python", "/bin/false"), "is older than 3.11"),
        (("--token-file", "/absent"), "cannot be read"),
    ],
)
def test_it_refuses_what_cannot_work(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    run = dry(tmp_path / "h", *options)
    assert run.returncode == 1
    assert message in run.stderr


def test_records_must_be_named(tmp_path: Path) -> None:
    run = dry(tmp_path / "h", FEDSLM_TOKEN="fedslm1.abc")
    assert run.returncode == 1
    assert "--data is missing" in run.stderr
    run = dry(tmp_path / "h", "--data", str(tmp_path / "absent"), FEDSLM_TOKEN="fedslm1.abc")
    assert "cannot be read" in run.stderr


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("uname", "echo armv7l", "32-bit"),
        ("uname", "echo mips", "architecture mips is not supported"),
        ("getconf", "echo 32", "the system is 32-bit"),
        ("awk", "echo 900", "900 MiB of memory, expected at least 1800"),
    ],
)
def test_it_refuses_machines_that_are_too_small(
    tmp_path: Path, name: str, body: str, message: str
) -> None:
    tool(tmp_path / "bin", name, body)
    run = dry(tmp_path / "h", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert run.returncode == 1
    assert message in run.stderr


def test_help_names_every_option() -> None:
    run = subprocess.run(
        [BASH, str(SCRIPT), "--help"], capture_output=True, text=True, check=True, timeout=30
    )
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    cases = [line.split(")")[0].strip() for line in lines if line.startswith("      --")]
    assert len(cases) == 10
    assert all(option in run.stdout for option in cases)
