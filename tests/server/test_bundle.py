"""The bundle of a fleet's runs: what travels, that it never changes, and that Flower takes it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from flwr.cli.config_utils import get_fab_metadata
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config

from server.bundle import FILES, RUN_KEYS, build_bundle
from shared.bundle import BUNDLE_DIGEST, BUNDLE_ID, BUNDLE_VERSION
from shared.canonical import sha256_hex
from shared.errors import FleetError

ALLOWED = {
    ".info/CONTENT",
    "fedslm_fleet/__init__.py",
    "fedslm_fleet/clientapp.py",
    "fedslm_fleet/serverapp.py",
    "pyproject.toml",
}


def test_nothing_travels_but_the_allowed_files() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as archive:
        assert set(archive.namelist()) == ALLOWED
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_its_modules_only_import_the_installed_apps() -> None:
    code = [text for name, text in FILES.items() if name.endswith("app.py")]
    assert code == ["from client.app import app as app\n", "from server.app import app as app\n"]


def test_its_digest_is_the_pinned_one() -> None:
    assert sha256_hex(build_bundle()) == BUNDLE_DIGEST


def test_a_changed_bundle_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "fedslm_fleet/clientapp.py", "import os\n")
    with pytest.raises(FleetError, match="expected " + BUNDLE_DIGEST):
        build_bundle()


def test_flower_reads_and_installs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = build_bundle()
    assert get_fab_metadata(bundle) == (BUNDLE_ID, BUNDLE_VERSION)
    config = get_fab_config(bundle)["tool"]["flwr"]["app"]["config"]
    assert config == dict.fromkeys(RUN_KEYS, "")
    installed = install_from_fab(bundle, install_dir=tmp_path, skip_prompt=True)
    found = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    assert found == ALLOWED - {".info/CONTENT"}
    capsys.readouterr()
