"""A running node looks after its certificate."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from client.home import DeviceHome
from shared.pki import read_certificate
from simulations.node_renew import COMMAND, renewing
from tests.simulations.devices import device

NOTE = "import sys, pathlib; pathlib.Path(sys.argv[2], 'asked').touch(); sys.exit(%d)"


def told(home: DeviceHome, command: list[str], *, seconds: float) -> list[str]:
    """Return what was told until something was, or for some seconds."""
    found: list[str] = []
    heard = threading.Event()

    def hear(what: str) -> None:
        found.append(what)
        heard.set()

    with renewing(home, hear, command=command, first=0.01, every=30.0):
        heard.wait(seconds)
    return found


def aged(folder: Path) -> DeviceHome:
    """Return a device of whose certificate less than a third is left."""
    home = device(folder, days=3, age_days=2.5)
    assert read_certificate(home.certificate.read_bytes()).name == "clinic-7"
    return home


@pytest.mark.parametrize(
    ("code", "what"), [(0, "certificate-renewed"), (93, "certificate-not-renewed")]
)
def test_what_is_due_is_renewed(tmp_path: Path, code: int, what: str) -> None:
    home = aged(tmp_path / "node")
    assert told(home, [sys.executable, "-c", NOTE % code], seconds=20.0) == [what]
    assert (home.path / "asked").exists()


def test_a_program_that_does_not_start(tmp_path: Path) -> None:
    home = aged(tmp_path / "node")
    assert told(home, [str(tmp_path / "absent")], seconds=20.0) == ["certificate-not-renewed"]


def test_nothing_is_started_before_it_is_due(tmp_path: Path) -> None:
    home = device(tmp_path / "node")
    assert told(home, [sys.executable, "-c", NOTE % 0], seconds=0.3) == []
    home.certificate.write_text("", encoding="ascii")
    assert told(home, [sys.executable, "-c", NOTE % 0], seconds=0.3) == []
    assert not (home.path / "asked").exists()


def test_the_command_is_one_of_ours() -> None:
    from simulations.cli import run

    assert run([*COMMAND[4:], "--help"]) == 0
