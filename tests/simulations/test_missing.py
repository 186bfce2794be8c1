"""A package that is not installed: what brings it is said, and what needs it not is done."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.errors import MissingDependency
from simulations import cli
from simulations.basepath import ASSETS
from simulations.missing import EXTRAS, missing

ROOT = Path(__file__).parents[2]
CALLED = {
    "dp_accounting": "dp-accounting",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "llama_cpp": "llama-cpp-python",
    "ray": "flwr",
}


def test_each_extra_brings_what_is_said() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        extra: {canonicalize_name(Requirement(line).name) for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }
    for module, extras in EXTRAS.items():
        package = canonicalize_name(CALLED.get(module, module))
        assert all(package in declared[extra] for extra in extras), module


def test_what_no_extra_brings_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing(ModuleNotFoundError(name="shared.nothing")) is None
    assert missing(ModuleNotFoundError()) is None

    def broken(arguments: list[str]) -> None:
        raise ModuleNotFoundError(name="shared.nothing")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.run(["eval"])


def test_commands_without_torch(tmp_path: Path) -> None:
    commands: list[tuple[list[str], int]] = [
        (["client", "policy", "base", str(ASSETS / "demo")], 0),
        (["export", "step", "quickstart", "--out", str(tmp_path / "step")], 3),
        (["export", "gguf", str(tmp_path), "--to", str(tmp_path / "phone")], 3),
        (["eval", "demo", "--tasks", "size", "--out", str(tmp_path / "eval")], 3),
        (["base", "compress", "demo", "--method", "gptq", "--out", str(tmp_path / "bases")], 3),
    ]
    code = (
        "import json, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'peft', 'opacus')))\n"
        "from simulations.cli import run\n"
        "print(json.dumps([run(words) for words in json.loads(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([words for words, _ in commands])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [code for _, code in commands]
    assert done.stderr.count("[missing-dependency]") == 4
    assert done.stderr.count("pip install 'fedslm[client]'") == 4
    assert list(tmp_path.iterdir()) == []
    assert MissingDependency.exit_code == 3
