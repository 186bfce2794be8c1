"""The board in a folder: which programs are QEMU's, what a command is, what it needs."""

from __future__ import annotations

import runpy
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "packaging" / "arm64.py"))
X86_64, AARCH64 = 62, 183


def header(machine: int, kind: int) -> bytes:
    """Return the first bytes of an ELF file of 64 bits, as its specification says."""
    return struct.pack("<4sBBBB8xHH", b"\x7fELF", 2, 1, 1, 0, kind, machine)


@pytest.mark.parametrize("kind", [2, 3])
def test_programs_of_aarch64_are_qemus_and_no_others(kind: int) -> None:
    _, _, how, _, magic, mask, program, flags = SCRIPT["_ELF"].split(":")
    assert (how, program, flags) == ("M", "/usr/bin/qemu-aarch64-static", "F")
    wanted, bits = (
        text.encode().decode("unicode_escape").encode("latin-1") for text in (magic, mask)
    )

    def taken(found: bytes) -> bool:
        assert len(wanted) == len(bits) == len(found)
        return all(f & b == w & b for f, w, b in zip(found, wanted, bits, strict=True))

    assert taken(header(AARCH64, kind))
    assert not taken(header(X86_64, kind))


def test_a_command_of_the_board_takes_nothing_of_this_machines_environment(tmp_path: Path) -> None:
    words = SCRIPT["inside"](tmp_path, "fedslm", "a b", FEDSLM_HOME="/x")
    assert words[:4] == ["unshare", "--user", "--map-root-user", "--mount"]
    clean = words[words.index("env") :]
    assert clean[1] == "-i"
    assert clean[-2:] == ["fedslm", "a b"]
    assert "FEDSLM_HOME=/x" in clean
    assert [word.partition("=")[2] for word in clean if word.startswith("PATH=")] == [
        "/opt/fedslm/bin:/usr/bin:/bin"
    ]


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match=r"aarch64-linux-gnu-g\+\+.*apt-get install"):
        SCRIPT["require_tools"]()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_native_client_is_compiled_against_what_is_named(tmp_path: Path) -> None:
    said = ["CXX=other-g++", "EXECUTORCH=/et", "RPATH=/there", f"OUT={tmp_path}"]
    said += ["OPENSSL_INCLUDES=-isystem /ssl", "OPENSSL_LIBS=-L/libs -lssl", "PYTHON=/nowhere"]
    shown = subprocess.run(
        ["make", "-n", "-C", str(ROOT / "client" / "native"), *said],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    calls = [line for line in shown if line.startswith("other-g++")]
    assert len(calls) > 5
    assert all("-isystem /ssl" in line for line in calls[:-1])
    assert all(word in calls[-1] for word in ("-L/et/lib", "-rpath,/there", "-L/libs -lssl"))
    [engine] = [line for line in calls if line.endswith("src/executorch.cpp")]
    assert "-isystem /et/include" in engine


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "sources.list",
            "# deb http://no/debian\ndeb [arch=amd64] http://one.example/debian bookworm main\n",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://one.example/debian/\nSuites: x\n",
        ),
    ],
)
def test_packages_come_from_where_this_machine_has_its_own(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    security = "deb http://two.example/debian-security bookworm-security main\n"
    (tmp_path / "sources.list.d" / "a.list").write_text(security)
    with pytest.raises(SystemExit, match="--mirror"):
        SCRIPT["own_mirror"](tmp_path)
    (tmp_path / name).write_text(text)
    assert SCRIPT["own_mirror"](tmp_path) == "http://one.example/debian"
