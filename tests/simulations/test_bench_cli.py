"""``fedslm bench``: finds modules by themselves, writes both forms, fails on a broken promise."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import simulations.benchmarks as package
from shared.errors import InvalidValue
from simulations.benchmarks.catalog import benchmark, summaries
from simulations.benchmarks.machine import describe_machine
from simulations.benchmarks.markdown import as_markdown
from simulations.benchmarks.protocol import BenchResult, Check
from simulations.cli import run

MODULE = '''
"""A benchmark for the tests of the command."""
from simulations.benchmarks.protocol import BenchResult, Check

SUMMARY = "How long nothing takes."


def run(*, quick: bool) -> BenchResult:
    limit = 10.0 if quick else LIMIT
    return BenchResult(
        name="nothing",
        parameters={"clients": 3},
        rows=({"step": "a|b", "seconds": 0.25}, {"step": "c", "note": True}),
        checks=(Check(name="nothing at all", measured=20.0, limit=limit, unit="s"),),
    )
'''


KEEPING = '''
"""A benchmark of many runs, which draws."""
from simulations.benchmarks.protocol import PROGRESS, BenchResult

SUMMARY = "What was asked."
KEEPS_RUNS = True


def run(*, quick, asked):
    PROGRESS.info("case 1 of 1")
    row = {"folder": str(asked.folder), "resume": asked.resume, "only": "+".join(asked.only)}
    return BenchResult(name="with_runs", parameters={"quick": quick}, rows=(row,))


def plot(result, path):
    path.write_text(f"<svg>{len(result.rows)}</svg>")
'''


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real package on a real path, whose modules are forgotten afterwards."""
    for name in ("nothing", "kept", "helper", "with_runs"):
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nothing.py").write_text(MODULE.replace("LIMIT", "15.0"), encoding="utf-8")
    (tmp_path / "kept.py").write_text(MODULE.replace("LIMIT", "25.0"), encoding="utf-8")
    (tmp_path / "helper.py").write_text('"""No benchmark."""\n', encoding="utf-8")
    (tmp_path / "with_runs.py").write_text(KEEPING, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    return tmp_path


def test_modules_are_found_and_helpers_are_not(folder: Path) -> None:
    found = summaries()
    assert {"kept", "nothing"} <= set(found)
    assert not {"helper", "protocol", "catalog", "machine", "markdown"} & set(found)
    assert list(found) == sorted(found)
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["helper", "nothin", "protocol", "../x"])
def test_an_unknown_name_is_refused(folder: Path, name: str) -> None:
    assert folder.is_dir()
    with pytest.raises(InvalidValue, match="expected one of"):
        benchmark(name)


def test_list_names_each_with_its_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder.is_dir()
    assert run(["bench", "list"]) == 0
    assert "How long nothing takes." in capsys.readouterr().out
    assert run(["bench", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["benchmarks"]
    assert {"name": "nothing", "summary": "How long nothing takes."} in found


def test_a_broken_promise_is_named_and_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    assert run(["bench", "run", "nothing"]) == 1
    shown = capsys.readouterr()
    assert "nothing at all" in shown.err
    assert "15" in shown.err
    assert run(["bench", "run", "nothing", "--quick"]) == 0
    assert "note" in capsys.readouterr().err
    assert run(["bench", "run", "kept"]) == 0
    assert capsys.readouterr().err == ""


def test_out_writes_both_forms(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    out = tmp_path / "new" / "found"
    assert run(["bench", "run", "kept", "--json", "--out", str(out)]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in out.iterdir()) == ["kept.json", "kept.md"]
    written = json.loads((out / "kept.json").read_text(encoding="utf-8"))
    assert written == printed
    assert printed["name"] == "kept"
    assert printed["command"] == "fedslm bench run kept"
    assert printed["parameters"] == {"clients": 3}
    assert printed["passed"] is True
    page = (out / "kept.md").read_text(encoding="utf-8")
    assert page.startswith("# kept\n")
    assert "| a/b | 0.25 | - |" in page
    assert "| nothing at all | 20 | 25 | s | yes |" in page
    assert "`fedslm bench run kept`" in page
    assert "![" not in page


def test_out_that_is_a_file_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    (tmp_path / "found.md").write_text("mine", encoding="utf-8")
    assert run(["bench", "run", "kept", "--out", str(tmp_path / "found.md")]) == 80
    assert "found.md" in capsys.readouterr().err
    assert (tmp_path / "found.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["with-runs", "with_runs"])
def test_a_benchmark_of_many_runs_is_told_where_which_and_draws(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    out = tmp_path / "found"
    chosen = ["--only", "a b", "--only", "c=d", "--resume", "--quick"]
    assert run(["bench", "run", name, "--json", "--out", str(out), *chosen]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert shown.err == "case 1 of 1\n"
    assert report["name"] == "with-runs"
    assert report["command"] == "fedslm bench run with-runs --quick --only 'a b' --only c=d"
    asked = {"folder": str(out / "with-runs-runs"), "resume": True, "only": "a b+c=d"}
    assert report["rows"] == [asked]
    assert (out / "with-runs.svg").read_text(encoding="utf-8") == "<svg>1</svg>"
    page = (out / "with-runs.md").read_text(encoding="utf-8")
    assert "![with-runs: What was asked.](with-runs.svg)" in page


def test_runs_are_kept_although_nobody_said_where(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert folder.is_dir()
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "run", "with-runs", "--quick", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row == {
        "folder": "runs/bench-with-runs-quick/with-runs-runs",
        "resume": False,
        "only": "",
    }
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", [["--resume"], ["--only", "x"]])
def test_a_single_measurement_has_no_runs_to_choose_from(
    option: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    assert run(["bench", "run", "kept", *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_a_wide_table_loses_no_column(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.is_dir()
    monkeypatch.setenv("COLUMNS", "20")
    assert run(["bench", "run", "kept"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split() == ["step", "seconds", "note"]


def test_the_machine_is_described_without_names_or_paths(tmp_path: Path) -> None:
    import platform

    machine = json.dumps(describe_machine())
    assert "numpy" in machine
    assert platform.node() not in machine or len(platform.node()) < 4
    assert str(Path.home()) not in machine
    assert describe_machine(tmp_path / "none")["cpu"] == platform.machine()


def test_accelerators_stand_in_the_page() -> None:
    page = as_markdown(report_on(["One", "Two"]), ())
    assert "on 2 cores of a cpu, One, Two, Linux, Python 3" in page
    assert "on 2 cores of a cpu, Linux, Python 3" in as_markdown(report_on([]), ())


def report_on(accelerators: list[str]) -> dict[str, Any]:
    machine = {"cores": 2, "cpu": "a cpu", "accelerators": accelerators, "system": "Linux"}
    return {
        "name": "n",
        "command": "fedslm bench run n",
        "summary": "s",
        "seconds": 1.0,
        "parameters": {},
        "rows": [],
        "checks": [],
        "machine": {**machine, "python": "3", "packages": {}},
    }


def test_a_number_that_is_not_finite_fails_and_has_a_json_form() -> None:
    check = Check(name="n", measured=math.nan, limit=math.inf, unit="s")
    result = BenchResult(name="r", parameters={}, rows=({"x": math.inf},), checks=(check,))
    assert not check.passed
    assert not result.passed
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["rows"] == [{"x": None}]
    assert found["checks"][0]["measured"] is None


def test_every_shipped_benchmark_keeps_the_protocol() -> None:
    for name in summaries():
        item = benchmark(name)
        assert item.SUMMARY.strip(), name
        assert "\n" not in item.SUMMARY
        assert callable(item.run)
