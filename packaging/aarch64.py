"""What an ARM board would install, resolved against the package index, without an ARM board.

    python packaging/aarch64.py                    what [edge] and [client] bring
    python packaging/aarch64.py --extra edge
    python packaging/aarch64.py --stand-in         where PyTorch's CPU wheel index is out of reach

pip resolves for aarch64 (glibc 2.17 to 2.35: Raspberry Pi OS, JetPack 6, Debian 12) under
constraints/aarch64.txt; metadata is read, nothing is installed. It fails if a package of CUDA's is
among what comes, a torch that is no CPU build, or a file for another machine.

pip judges ``platform_machine`` by the machine it runs on, whatever ``--platform`` says; here it is
told. ``--stand-in`` puts an empty wheel in torch's place, with the name of the pinned build and the
requirements of the CPU build that is installed here, so that all else is resolved for real.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints" / "aarch64.txt"
CUDA = re.compile(r"nvidia|cuda|triton|cupy|rocm|tensorrt")
_OWN = re.compile(r"fedslm\[([\w,]+)\]")
_PIP = """
import platform, sys
platform.machine = lambda: "aarch64"
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def requirements(extras: Sequence[str], project: Path = ROOT / "pyproject.toml") -> list[str]:
    """Return what fedslm with some extras requires, extras that name extras followed."""
    said = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    found, todo = list(said["dependencies"]), list(extras)
    for extra in todo:
        for line in said["optional-dependencies"][extra]:
            own = _OWN.fullmatch(line)
            if own is None:
                found.append(line)
            else:
                todo += [name for name in own[1].split(",") if name not in todo]
    return found


def problems(report: dict[str, Any]) -> list[str]:
    """Return what a board must not get, of a report that pip's ``--report`` wrote."""
    return [line for item in report["install"] for line in _problems_of(item)]


def _problems_of(item: dict[str, Any]) -> Iterator[str]:
    name, version = item["metadata"]["name"].lower(), item["metadata"]["version"]
    file = item["download_info"]["url"].rpartition("/")[2].replace("%2B", "+")
    tag = file.removesuffix(".whl").rpartition("-")[2]
    if CUDA.search(name):
        yield f"{name} {version} is of CUDA"
    if name == "torch" and not version.endswith("+cpu"):
        yield f"torch {version} is no CPU build"
    if not file.endswith(".whl"):
        yield f"{file} would have to be built on the board"
    elif tag != "any" and not all(part.endswith("_aarch64") for part in tag.split(".")):
        yield f"{file} is for another machine"


def stand_in(folder: Path) -> None:
    """Write an empty wheel of the pinned torch, with the requirements of the one installed here."""
    pinned = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    version = pinned[1] if pinned else ""
    if importlib.metadata.version("torch") != version:
        msg = f"torch {version} is not installed here: nothing to stand in for it"
        raise SystemExit(msg)
    needs = importlib.metadata.requires("torch") or []
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    info = f"torch-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", "Name: torch", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in needs]
    wheel = folder / f"torch-{version}-{tag}-{tag}-manylinux_2_28_aarch64.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}-{tag}-linux_aarch64\n")
        file.writestr(f"{info}/RECORD", "")


def _pip(what: str, *, newest: int, version: str) -> list[str]:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(newest, 16, -1)]
    return [
        *(sys.executable, "-c", _PIP, what, "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--only-binary=:all:"),
        *("--implementation=cp", f"--python-version={version}", *platforms),
        *("-c", str(CONSTRAINTS)),
    ]


def command(folder: Path, wanted: Sequence[str], *, links: bool) -> list[str]:
    """Return the call of pip that resolves for a board and installs nothing."""
    version = ".".join(map(str, sys.version_info[:2]))
    return [
        *_pip("install", newest=35, version=version),
        *("--dry-run", "--ignore-installed"),
        *(f"--target={folder / 'target'}", f"--report={folder / 'report.json'}"),
        *((f"--find-links={folder}",) if links else ()),
        *wanted,
    ]


def download(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Return the call of pip that fetches for a board with Debian 12: glibc 2.36, Python 3.11."""
    return [*_pip("download", newest=36, version="3.11"), f"--dest={folder}", *wanted]


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def main() -> int:
    """Resolve each extra by itself, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--extra", action="append", help="default: edge, then client")
    parser.add_argument("--stand-in", action="store_true", help="an empty wheel for torch")
    said = parser.parse_args()
    bad = 0
    for extra in said.extra or ["edge", "client"]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if said.stand_in:
                stand_in(folder)
            call = command(folder, requirements([extra]), links=said.stand_in)
            run = subprocess.run(call, check=False)  # noqa: S603  (our own arguments)
            if run.returncode:
                say(f"[{extra}] pip could not resolve it (exit {run.returncode})")
                bad = 1
                continue
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        found = problems(report)
        say(f"[{extra}] {len(report['install'])} packages, {len(found)} problems")
        for line in found:
            say(f"  {line}")
        bad |= bool(found)
    return bad


if __name__ == "__main__":
    sys.exit(main())
