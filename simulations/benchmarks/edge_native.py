"""The runtime ``native`` of the benchmark ``edge``: the client in C++, without Python.

It is compiled from the sources that come with fedslm, beside what is prepared, and measures itself:
``fedslm-native bench STEP ROWS``. Its steps train B alone, as every step that this client takes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shared.errors import MissingDependency, UnsupportedModel
from simulations.benchmarks import edge_onnx
from simulations.benchmarks.edge_runtimes import RUNTIMES

if TYPE_CHECKING:
    from simulations.benchmarks.edge_case import Case
    from simulations.benchmarks.edge_runtimes import Answer, Step
    from simulations.benchmarks.protocol import Scalar

NAME = "native"
"""The runtime, which measures itself in a process of its own."""

WHOLE = "native client"
_PROGRAM = "fedslm-native"
_NEEDS = "A C++17 compiler, OpenSSL 3 with headers and pip's executorch (docs/native.md)."


def prepare(what: str, base: Path, quantization: str, folder: Path) -> None:
    """Compile the client, unless that was done, and export a step for it."""
    del what
    build(folder.parent / _PROGRAM)
    edge_onnx.export(base, quantization, folder, runtime="executorch", trained="B")


def build(folder: Path) -> Path:
    """Compile the client as its Makefile does, without what debuggers need.

    Args:
        folder: where it goes; what is there is taken as it is.

    Returns:
        The program.

    Raises:
        MissingDependency: if it cannot be compiled here.
    """
    import client.native

    program = folder / _PROGRAM
    if not program.exists():
        said = ["-s", f"PYTHON={sys.executable}", f"OUT={folder.resolve()}", "CXXFLAGS=-O2"]
        done = subprocess.run(  # noqa: S603 - our own Makefile, no shell
            [_tool("make"), *said, "LDFLAGS=-s"],
            cwd=Path(client.native.__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
            msg = f"The native client cannot be compiled: {last[:200]}"
            raise MissingDependency(msg, hint=_NEEDS)
    return program


def measured(case: Case) -> Mapping[str, Any]:
    """Let the program measure itself; see :func:`simulations.benchmarks.edge_case.measure`."""
    from simulations.benchmarks.edge_case import size_of

    folder = Path(case.folder)
    program = build(folder.parent / _PROGRAM)
    done = subprocess.run(  # noqa: S603 - our own program, no shell
        [str(program), "bench", str(folder), str(case.repetitions)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return {"status": f"exit {done.returncode} of the native client"}
    found: dict[str, Any] = json.loads(done.stdout)
    # The program's own energy is not told apart from that of the process that asked.
    return {**found, "files_bytes": size_of(folder), "energy": "none", "joules": None}


def installed(folder: Path) -> list[Mapping[str, Scalar]]:
    """Return what a device without Python installs, in MB: the client, and what it is linked with.

    The C and C++ libraries are the system's and not counted; the step is the device's data.

    Args:
        folder: to compile in.

    Returns:
        A row for the program, one for each library and one for all; one with the reason where it
        cannot be compiled here.
    """
    reason = RUNTIMES[NAME].missing()
    try:
        program = None if reason is not None else build(folder)
    except MissingDependency as error:
        program, reason = None, error.message
    if program is None:
        return [{"part": WHOLE, "status": reason}]
    sizes = {_PROGRAM: program.stat().st_size, **libraries(program)}
    rows: list[Mapping[str, Scalar]] = [
        {"part": f"native client: {name}", "mb": size / 1e6} for name, size in sizes.items()
    ]
    return [*rows, {"part": WHOLE, "mb": sum(sizes.values()) / 1e6}]


def libraries(program: Path) -> dict[str, int]:
    """Return the shared libraries of a program by name, with their bytes; not the C library's."""
    said = subprocess.run(  # noqa: S603 - our own program, no shell
        [_tool("ldd"), str(program)], capture_output=True, text=True, check=True
    )
    paths = [Path(line.split()[2]) for line in said.stdout.splitlines() if "=> /" in line]
    wanted = ("libexecutorch", "libssl", "libcrypto")
    return {path.name: path.stat().st_size for path in paths if path.name.startswith(wanted)}


def imports(what: str) -> None:
    """Refuse, as the two below: the program is a process of its own.

    Raises:
        UnsupportedModel: always.
    """
    del what
    _refuse()


def trainer(folder: Path, quantization: str) -> Step:
    """Refuse."""
    del folder, quantization
    _refuse()


def speaker(folder: Path, quantization: str) -> Answer:
    """Refuse."""
    del folder, quantization
    _refuse()


def _tool(name: str) -> str:
    """Return where a tool is.

    Raises:
        MissingDependency: if it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        msg = f"The native client needs {name}, which is not installed."
        raise MissingDependency(msg, hint=_NEEDS)
    return found


def _refuse() -> NoReturn:
    """Raise the error of what Python cannot do with a program in C++."""
    msg = "The native client measures itself."
    raise UnsupportedModel(msg)
