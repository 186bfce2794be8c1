"""The benchmark of what a device installs: sizes add up, and it measures an environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from client.trim import disk_size
from simulations.benchmarks import edge_install
from simulations.benchmarks.catalog import summaries
from simulations.benchmarks.protocol import BenchResult, Scalar

Row = Mapping[str, Scalar]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, size in (
        ("numpy/core.so", 400_000),
        ("numpy/__pycache__/core.pyc", 50_000),
        ("numpy.libs/blas.so", 300_000),
        ("numpy-2.4.dist-info/RECORD", 20_000),
        ("single.py", 9_000),
        ("__pycache__/single.pyc", 9_000),
    ):
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_bytes(b"x" * 90_000)
    return tmp_path


def test_it_is_listed() -> None:
    assert "edge-install" in summaries()


def test_sizes_are_by_package_and_add_up(prefix: Path) -> None:
    found = edge_install.sizes(prefix)
    assert found.total() == disk_size(prefix)
    assert found["numpy"] >= 720_000
    assert 59_000 <= found["bytecode"] < 100_000
    assert found["programs"] >= 90_000
    assert set(found) == {"numpy", "bytecode", "programs", "other"}


def test_the_client_without_python_has_a_promise_of_its_own() -> None:
    python = BenchResult(name="edge-install", parameters={}, rows=({"part": "whole", "mb": 430.0},))
    rows: list[Row] = [
        {"part": "native client: x", "mb": 20.0},
        {"part": "native client", "mb": 251.0},
    ]
    found = edge_install.with_native(python, rows)
    assert found.rows == (*python.rows, *rows)
    assert [(check.measured, check.passed) for check in found.checks] == [(251.0, False)]
    reason: list[Row] = [{"part": "native client", "status": "no g++"}]
    assert edge_install.with_native(python, reason).checks == ()


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_an_environment_is_measured(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.prefix", str(prefix))
    for name in ("NODE", "WORKER", "LOADED"):
        monkeypatch.setattr(edge_install, name, "import json")
    monkeypatch.setattr(edge_install, "_TIMES", 1)
    result = edge_install.run(quick=True)
    rows = {str(row["part"]): row for row in result.rows}
    assert rows["whole"]["mb"] == pytest.approx(disk_size(prefix) / 1e6)
    assert float(rows["worker"]["resident_mb"] or 0) > 1
    assert float(rows["worker"]["import_s"] or 0) > 0
    assert {check.unit for check in result.checks} == {"MB", "s"}
    packages = sum(float(row["mb"] or 0) for row in result.rows[1:] if "mb" in row)
    assert packages == pytest.approx(disk_size(prefix) / 1e6)
