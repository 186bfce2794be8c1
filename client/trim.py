"""Taking out of a device's Python environment what a node never loads.

Three things: the tests that other packages install with themselves, the program ``uv`` that comes
with Flower and installs apps, which a node of fedslm does not do, and the compiled bytecode of
modules that a node does not load; where one is needed after all, Python compiles it again. Nothing
is taken that a node was seen to load, and the node is loaded again before anything is deleted: if
that fails, everything is put back.

scipy and dp-accounting stay: with them a device composes its own ledger.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final

from shared.errors import UsageError
from shared.files import disk_errors

TRASH: Final = ".fedslm-trim"
_PROGRAMS: Final = ("uv", "uvx")
_SCAN: Final = """
import json, sys
import client.app, client.edge.runtime, client.fleet.worker, simulations.cli, simulations.node_run
import numpy, onnxruntime, tokenizers
from shared.privacy.accountant import PldAccountant, RdpAccountant
from shared.privacy.events import GaussianEvent, NeighboringRelation
for kind in (PldAccountant, RdpAccountant):
    account = kind(NeighboringRelation.ADD_OR_REMOVE_ONE)
    account.compose(GaussianEvent(noise_multiplier=2.0, sampling_probability=0.1, count=3))
    if not 0 < account.epsilon(1e-5) < 50:
        raise SystemExit("The accountant is wrong.")
print(json.dumps([m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]))
"""

Probe = Callable[[], frozenset[Path]]
"""Loads a node in a process of its own and returns the files that it loaded.

Raises:
    UsageError: if it cannot be loaded.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that can go.

    Attributes:
        path: a file or a folder.
        what: ``"tests"``, ``"uv"`` or ``"bytecode"``.
        size: on disk, in bytes.
    """

    path: Path
    what: str
    size: int


def load_node() -> frozenset[Path]:
    """Load what a node without torch loads, let it compose a budget, and return its files.

    Raises:
        UsageError: if that fails.
    """
    done = subprocess.run(  # noqa: S603 - our own program, no shell
        [sys.executable, "-c", _SCAN], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        msg = f"A node without torch cannot be loaded here: {reason[0][:200]}"
        raise UsageError(msg, hint="Install it whole: pip install 'fedslm[edge]'")
    return frozenset(Path(name).resolve() for name in json.loads(done.stdout.splitlines()[-1]))


def require_devices_environment() -> tuple[Path, Path]:
    """Return the environment's folder and its packages' folder.

    Raises:
        UsageError: if this is no environment of its own, or one that does more than a node.
    """
    from importlib.util import find_spec
    from sysconfig import get_paths

    if sys.prefix == sys.base_prefix:
        msg = "This Python is the system's and no environment of its own; nothing is deleted."
        raise UsageError(msg, hint="Make one with python -m venv, for the device alone.")
    for name in ("torch", "prometheus_client", "pytest"):
        if find_spec(name) is not None:
            msg = f"{name} is installed: this environment does more than a node without torch."
            raise UsageError(msg, hint="Make one with pip install 'fedslm[edge]' alone.")
    return Path(sys.prefix), Path(get_paths()["purelib"])


def find_parts(prefix: Path, packages: Path, loaded: frozenset[Path]) -> list[Part]:
    """Return what can go.

    Args:
        prefix: of the environment.
        packages: where packages are installed.
        loaded: files that a node loads; no folder of tests with one of them goes.
    """
    needed = {parent for path in loaded for parent in path.parents}
    root = packages.resolve()
    found = []
    for path in _folders(root, "tests"):
        inside = path.relative_to(root)
        if len(inside.parts) > 1 and path not in needed:
            found.append(Part(path=path, what="tests", size=disk_size(path)))
    for name in _PROGRAMS:
        program = prefix / "bin" / name
        if program.is_file() and not program.is_symlink():
            found.append(Part(path=program, what="uv", size=disk_size(program)))
    gone = {part.path for part in found}
    kept = {Path(cache_from_source(path)) for path in loaded if path.suffix == ".py"}
    for folder in _folders(root, "__pycache__"):
        if not gone & set(folder.parents):
            files = set(folder.iterdir())
            unused = sorted(files - kept) if files & kept else [folder]
            found += [Part(path=one, what="bytecode", size=disk_size(one)) for one in unused]
    return found


def trim(prefix: Path, packages: Path, probe: Probe = load_node) -> list[Part]:
    """Take out what can go, and return it.

    Args:
        prefix: of the environment.
        packages: where packages are installed.
        probe: see :data:`Probe`; called before and after.

    Raises:
        UsageError: if a node cannot be loaded, before or after; then nothing is gone.
        RunFolderError: if files cannot be moved.
    """
    parts = find_parts(prefix, packages, probe())
    trash = prefix / TRASH
    moved: list[tuple[Path, Path]] = []
    with disk_errors(trash):
        trash.mkdir()
        try:
            for number, part in enumerate(parts):
                place = trash / str(number)
                part.path.rename(place)
                moved.append((place, part.path))
            probe()
        except BaseException:
            _put_back(moved)
            trash.rmdir()
            raise
        shutil.rmtree(trash)
    return parts


def disk_size(path: Path) -> int:
    """Return the bytes that a file or a folder takes on disk; links are not followed."""
    own = path.lstat().st_blocks * 512
    if path.is_symlink() or not path.is_dir():
        return own
    return own + sum(disk_size(child) for child in path.iterdir())


def _folders(root: Path, name: str) -> Iterator[Path]:
    """Yield the folders of a name, none inside another of them."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name == name:
                yield path
            else:
                yield from _folders(path, name)


def _put_back(moved: list[tuple[Path, Path]]) -> None:
    """Move everything to where it was; bytecode that was written meanwhile gives way."""
    for place, path in reversed(moved):
        if path.is_dir():
            shutil.rmtree(path)
        place.rename(path)
