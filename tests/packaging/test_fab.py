"""The app bundle that Flower sends to every node: an allow-list of code, never data."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).parents[2]
ALLOWED = re.compile(
    r"(client|server|shared)/([a-z_0-9]+/)*[a-z_0-9]+\.py|LICENSE|pyproject\.toml|\.info/CONTENT"
)
PLANTED = (
    ".secrets.yaml",
    ".env.json",
    "data/private.jsonl",
    "client/patients.json",
    "client/notes.md",
    "server/keys.yaml",
    "shared/ledger.toml",
    "simulations/corpus.jsonl",
    "runs/last/metrics.jsonl",
)
SECRET = "the code word of clinic 4711 is heron"

# Flower 1.41 asks pathspec for a pattern style by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the app with secrets lying about, and no .gitignore to hide them."""
    folder = tmp_path_factory.mktemp("app")
    for name in ("client", "server", "shared", "simulations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in PLANTED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bundle(app: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_only_allowed_files_travel(bundle: dict[str, bytes]) -> None:
    assert [name for name in bundle if not ALLOWED.fullmatch(name)] == []


def test_no_planted_secret_travels(bundle: dict[str, bytes]) -> None:
    assert not set(PLANTED) & set(bundle)
    assert all(SECRET.encode() not in content for content in bundle.values())


def test_both_apps_and_all_they_import_travel(bundle: dict[str, bytes]) -> None:
    code = {
        path.relative_to(ROOT).as_posix()
        for name in ("client", "server", "shared")
        for path in (ROOT / name).rglob("*.py")
    }
    assert {"client/app.py", "server/app.py"} <= code
    assert code == {name for name in bundle if name.endswith(".py")}


def test_the_same_tree_gives_the_same_bundle(app: Path) -> None:
    assert build_fab_from_disk(app) == build_fab_from_disk(app)
