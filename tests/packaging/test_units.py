"""The systemd units: read as systemd reads them, and held to what they promise."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from client.home import NODE_FILE, DeviceHome, NodeConfig

SYSTEMD = Path(__file__).parents[2] / "packaging" / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
PROGRAM = {
    "fedslm-server.service": "/opt/fedslm/bin/fedslm",
    "fedslm-client.service": "%h/.local/lib/fedslm/bin/fedslm",
}


def read(path: Path) -> dict[str, dict[str, list[str]]]:
    """Return the settings of a unit by section; a setting may come several times."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), defaultdict(list))
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section[key].append(value)
    return found


def service(name: str) -> dict[str, list[str]]:
    return read(SYSTEMD / name)["Service"]


def test_there_are_two() -> None:
    assert {path.name for path in UNITS} == set(PROGRAM)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_it(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    text = path.read_text(encoding="utf-8")
    # The program is not installed here; everything else is as it ships.
    copy = tmp_path / path.name
    copy.write_text(text.replace(PROGRAM[path.name], "/bin/true"), encoding="utf-8")
    user = ["--user"] if "client" in path.name else []
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    run = subprocess.run(
        [analyze, "verify", *user, str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )
    assert (run.returncode, run.stderr.strip()) == (0, "")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_it_is_hardened(path: Path) -> None:
    found = read(path)["Service"]
    wanted = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "UMask": "0077",
        "LimitCORE": "0",
        "RestrictSUIDSGID": "yes",
        "Restart": "always",
    }
    assert {key: found[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    assert found["MemoryMax"]
    assert "FLWR_TELEMETRY_ENABLED=0" in " ".join(found["Environment"])
    # It is never given up.
    assert read(path)["Unit"]["StartLimitIntervalSec"] == ["0"]


def test_the_program_is_where_the_unit_says() -> None:
    for name, program in PROGRAM.items():
        [command] = service(name)["ExecStart"]
        assert command.split()[0] == program
    assert service("fedslm-client.service")["ExecStart"][0].split()[1:] == ["client", "run"]
    assert service("fedslm-server.service")["ExecStart"][0].split()[1:3] == ["server", "run"]


def test_a_node_gives_way() -> None:
    found = service("fedslm-client.service")
    assert (found["Nice"], found["IOSchedulingClass"]) == (["19"], ["idle"])
    assert found["OOMScoreAdjust"] == ["900"]
    assert found["CPUQuota"] == ["300%"]
    assert found["MemoryHigh"] < found["MemoryMax"] == ["2G"]
    assert (found["Type"], found["NotifyAccess"]) == (["notify"], ["main"])
    assert int(found["WatchdogSec"][0]) >= 60


def test_a_device_that_is_not_in_the_fleet_is_left_in_peace() -> None:
    needed = read(SYSTEMD / "fedslm-client.service")["Unit"]["ConditionPathExists"]
    folder = "%h/.local/share/fedslm"
    home = DeviceHome(path=Path("/x"), config=NodeConfig(name="n", fleet="h:1", control="h:2"))
    assert needed == [f"{folder}/{NODE_FILE}", f"!{folder}/{home.left_file.name}"]


def test_a_node_sees_what_its_conditions_ask_about() -> None:
    found = service("fedslm-client.service")
    # /proc/stat, /proc/loadavg and /proc/net, and its worker in the process table.
    assert "ProcSubset" not in found
    assert "PrivateNetwork" not in found
    # torch translates code at run time.
    assert "MemoryDenyWriteExecute" not in found
