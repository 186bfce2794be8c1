"""What the wheel brings: the four packages with their data, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "client", "shared", "simulations")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without a network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def test_four_packages_and_nothing_else(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == 5


def test_every_module_is_in_it(names: list[str]) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert sources <= set(names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_the_demo_model_scenarios_and_templates_are_in_it(names: list[str]) -> None:
    data = {
        path.relative_to(ROOT).as_posix()
        for folder in ("assets", "scenarios")
        for path in (ROOT / "simulations" / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "simulations/assets/demo/model.safetensors" in data
    assert "simulations/scenarios/quickstart.toml" in data
    assert data <= set(names)


def test_the_native_client_can_be_built_from_it(names: list[str]) -> None:
    folder = ROOT / "client" / "native"
    sources = {p.relative_to(ROOT).as_posix() for p in (folder / "src").glob("*.*")}
    sources |= {f"client/native/{n}" for n in ("Makefile", "CMakeLists.txt", "protocol.json")}
    assert len(sources) > 20
    assert sources <= set(names)


def test_no_tests_caches_or_private_files(names: list[str]) -> None:
    suspicious = [
        name
        for name in names
        if "test" in Path(name).stem.split("_")
        or "__pycache__" in name
        or Path(name).suffix in {".pyc", ".sqlite", ".jsonl", ".key", ".pem", ".env"}
    ]
    assert suspicious == []


def test_it_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 12_000_000  # the demo model may take 8 MB of it


def test_metadata(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["Name"] == "fedslm"
    assert metadata["Version"] == project["version"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) >= {"client", "sim", "ray", "dev"}


def test_the_licence_travels_and_the_command_is_declared(wheel: Path, names: list[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [n for n in names if n.endswith("entry_points.txt")]
        assert "fedslm = simulations.cli:main" in archive.read(entry).decode("utf-8")
