"""Every import is declared, every pin satisfies what is declared, Flower is used by its front."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "client", "shared", "simulations")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# Where a distribution's import name is another.
IMPORTED_AS = {
    "dp-accounting": "dp_accounting",
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "grpcio-tools": "grpc_tools",
    "huggingface-hub": "huggingface_hub",
    "llama-cpp-python": "llama_cpp",
    "opentelemetry-api": "opentelemetry",
    "protobuf": "google",
    "pyyaml": "yaml",
}
# What comes with a declared distribution, and is made for its users; what only developers run.
BESIDE = {"client/policyfile.py": {"pydantic_core"}, "shared/control/generate.py": {"grpc_tools"}}
# Flower's public front. Engine and worker stand in for its runtime, and the SuperLink's launcher
# for its missing access control; neither has a public face (docs/adr/0014 and 0016).
FLOWER_ROOTS = {
    "flwr.app",
    "flwr.clientapp",
    "flwr.serverapp",
    "flwr.serverapp.strategy",
    "flwr.simulation",
}
FLOWER_INSIDE = {
    "simulations/engine.py": {"flwr.supercore.run", "flwr.supercore.task_identity"},
    "client/fleet/worker.py": {"flwr.app.metadata", "flwr.supercore.task_identity"},
    "server/flowermessages.py": {
        "flwr.proto.fleet_pb2",
        "flwr.proto.heartbeat_pb2",
        "flwr.supercore.inflatable",
        "flwr.supercore.inflatable.inflatable_object",
        "flwr.superlink.grid",
    },
    "server/superlinkclient.py": {
        "flwr.proto.control_pb2",
        "flwr.proto.fab_pb2",
        "flwr.proto.transport_pb2",
    },
    "server/superlink.py": {
        "flwr.superlink.cli.flower_superlink",
        "flwr.superlink.config_loader",
        "flwr.superlink.main",
    },
}


def declared(lines: list[str]) -> set[str]:
    names = {canonicalize_name(Requirement(line).name) for line in lines} - {"fedslm"}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def modules(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@cache
def imports() -> dict[str, frozenset[str]]:
    """Return the foreign modules that each source file imports."""
    ours = sys.stdlib_module_names | set(PACKAGES)
    return {
        path.relative_to(ROOT).as_posix(): frozenset(
            name for name in modules(path) if name.split(".")[0] not in ours
        )
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def pins(name: str) -> dict[str, str]:
    """Return the pins of a constraints file with those it includes; the Linux line of two."""
    found: dict[str, str] = {}
    for raw in (ROOT / "constraints" / name).read_text(encoding="utf-8").splitlines():
        line = raw.split("#")[0].strip()
        if line.startswith("-c "):
            found |= pins(line.removeprefix("-c ").strip())
        elif line and "!= " not in line:
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def test_every_import_is_declared() -> None:
    core = declared(PROJECT["dependencies"])
    optional = set().union(*(declared(lines) for extra, lines in EXTRAS.items() if extra != "dev"))
    optional |= {"ray"}  # what flwr[simulation] brings; the flower engine asks whether it is there
    undeclared = {
        (path, name)
        for path, names in imports().items()
        for name in names
        if name.split(".")[0] not in core | optional | BESIDE.get(path, set())
    }
    assert undeclared == set()


def test_every_core_dependency_is_imported() -> None:
    used = {name.split(".")[0] for names in imports().values() for name in names}
    assert declared(PROJECT["dependencies"]) - used == set()


def test_flower_is_used_by_its_public_front() -> None:
    inside = {
        (path, name)
        for path, names in imports().items()
        for name in names
        if name.split(".")[0] == "flwr"
        and name not in FLOWER_ROOTS
        and name not in FLOWER_INSIDE.get(path, ())
    }
    assert inside == set()


@pytest.mark.parametrize("name", ["cpu.txt", "cuda.txt"])
def test_pins_satisfy_what_is_declared(name: str) -> None:
    lines = PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]
    pinned = pins(name)
    for requirement in map(Requirement, lines):
        if requirement.name != "fedslm":
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_cpu_pins_cannot_bring_cuda() -> None:
    pinned = pins("cpu.txt")
    assert pinned["torch"].endswith("+cpu")
    assert sorted(n for n in pinned if n.startswith(("nvidia", "cuda", "triton"))) == []
    assert pins("cuda.txt")["torch"] == pinned["torch"].removesuffix("+cpu")


def test_pins_are_exact_and_sorted() -> None:
    text = (ROOT / "constraints" / "common.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!\-]+", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
