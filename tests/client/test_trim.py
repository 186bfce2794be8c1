"""Trimming a device's environment: what is loaded stays, and a failure puts everything back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.trim import TRASH, Part, disk_size, find_parts, load_node, trim
from shared.errors import UsageError

TAG = sys.implementation.cache_tag


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Make an environment: a package whose tests are loaded, one whose are not, and uv."""
    root = tmp_path / "env"
    packages = root / "lib" / "site-packages"
    for name in (
        "bin/uv",
        "bin/python",
        "lib/site-packages/big/core.py",
        "lib/site-packages/big/tests/test_core.py",
        "lib/site-packages/big/tests/__pycache__/test_core.pyc",
        f"lib/site-packages/big/__pycache__/core.{TAG}.pyc",
        "lib/site-packages/big/__pycache__/core.cpython-30.pyc",
        "lib/site-packages/big/deep/__pycache__/unused.pyc",
        "lib/site-packages/odd/tests/_used.py",
        "lib/site-packages/odd/tests/__pycache__/_used.pyc",
        "lib/site-packages/odd/deep/tests/data.bin",
        "lib/site-packages/tests/a_package_of_this_name.py",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5000)
    assert packages.is_dir()
    return root


def node(prefix: Path) -> Callable[[], frozenset[Path]]:
    """Return a probe that loads one package and the tests of another."""
    packages = (prefix / "lib" / "site-packages").resolve()
    return lambda: frozenset({packages / "big" / "core.py", packages / "odd/tests/_used.py"})


def contents(prefix: Path) -> set[str]:
    return {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}


def by_name(parts: list[Part], prefix: Path) -> dict[str, str]:
    return {str(part.path.relative_to(prefix.resolve())): part.what for part in parts}


def test_what_goes(prefix: Path) -> None:
    before = disk_size(prefix)
    gone = trim(prefix, prefix / "lib" / "site-packages", node(prefix))
    assert by_name(gone, prefix) == {
        "bin/uv": "uv",
        "lib/site-packages/big/tests": "tests",
        "lib/site-packages/odd/deep/tests": "tests",
        "lib/site-packages/big/__pycache__/core.cpython-30.pyc": "bytecode",
        "lib/site-packages/big/deep/__pycache__": "bytecode",
        "lib/site-packages/odd/tests/__pycache__": "bytecode",
    }
    assert contents(prefix) == {
        "bin/python",
        "lib/site-packages/big/core.py",
        f"lib/site-packages/big/__pycache__/core.{TAG}.pyc",
        "lib/site-packages/odd/tests/_used.py",
        "lib/site-packages/tests/a_package_of_this_name.py",
    }
    assert before - disk_size(prefix) == sum(part.size for part in gone)


def test_a_dry_run_looks_and_touches_nothing(prefix: Path) -> None:
    before = contents(prefix)
    found = find_parts(prefix, prefix / "lib" / "site-packages", node(prefix)())
    assert {part.what for part in found} == {"tests", "uv", "bytecode"}
    assert contents(prefix) == before


def test_a_node_that_cannot_be_loaded_afterwards_gets_everything_back(prefix: Path) -> None:
    before, calls = contents(prefix), []

    def probe() -> frozenset[Path]:
        calls.append(1)
        if len(calls) > 1:
            # Python has written some bytecode again by then.
            fresh = prefix / "lib/site-packages/big/deep/__pycache__"
            fresh.mkdir()
            (fresh / "unused.pyc").write_bytes(b"new")
            msg = "A node cannot be loaded."
            raise UsageError(msg)
        return node(prefix)()

    with pytest.raises(UsageError):
        trim(prefix, prefix / "lib" / "site-packages", probe)
    assert contents(prefix) == before
    assert not (prefix / TRASH).exists()
    assert (prefix / "lib/site-packages/big/deep/__pycache__/unused.pyc").stat().st_size == 5000


def test_links_are_not_followed(prefix: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "tests").mkdir(parents=True)
    (outside / "tests" / "file").write_bytes(b"x")
    (prefix / "lib/site-packages/linked").symlink_to(outside)
    os.unlink(prefix / "bin/uv")
    (prefix / "bin/uv").symlink_to(outside / "tests" / "file")
    trim(prefix, prefix / "lib" / "site-packages", node(prefix))
    assert (outside / "tests" / "file").exists()
    assert (prefix / "bin/uv").is_symlink()


@pytest.mark.slow
def test_a_node_loads_and_composes_a_budget() -> None:
    loaded = load_node()
    names = {path.parent.name for path in loaded}
    # What the device checks its budget with is loaded, so it can never be taken.
    assert {"onnxruntime", "numpy"} <= names
    assert any("dp_accounting" in path.parts for path in loaded)
    assert any("scipy" in path.parts for path in loaded)
    assert not any("torch" in path.parts for path in loaded)


def test_an_environment_that_does_more_is_left_alone() -> None:
    from client.trim import require_devices_environment

    with pytest.raises(UsageError):
        require_devices_environment()
