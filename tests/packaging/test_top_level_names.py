"""The four generic package names belong to this project alone; pip does not look."""

from __future__ import annotations

import importlib.metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

OURS = ("server", "client", "shared", "simulations")
ROOT = Path(__file__).parents[2]


def test_nobody_else_owns_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    # An editable installation has no entry of its own.
    others = {(name, owner) for name in OURS for owner in owners.get(name, ())}
    assert others <= {(name, "fedslm") for name in OURS}


def test_the_four_packages_are_siblings() -> None:
    origins = []
    for name in OURS:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        origins.append(Path(spec.origin).parents[1].resolve())
    assert set(origins) == {ROOT.resolve()}


def test_tests_are_packages_all_the_way() -> None:
    # Without it `import server` may become tests/server.
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert sorted(f for f in folders if not (f / "__init__.py").is_file()) == []


def test_no_gigabytes_of_cuda_beside_the_cpu_build() -> None:
    build = importlib.metadata.version("torch")
    if not build.endswith("+cpu"):
        pytest.skip(f"torch {build} is not the CPU build")
    installed = {found.name for found in importlib.metadata.distributions()}
    assert sorted(n for n in installed if n.startswith(("nvidia-", "cuda-"))) == []
