"""The benchmark of devices' runtimes: its rows and checks say what was measured, and it runs."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidValue
from simulations.benchmarks import edge
from simulations.benchmarks.catalog import benchmark, keeping, plotting
from simulations.benchmarks.edge_case import Case, main
from simulations.benchmarks.edge_points import FULL, M47, QUICK, Point, chosen
from simulations.benchmarks.edge_runtimes import REFERENCE, RUNTIMES
from simulations.benchmarks.protocol import Asked, BenchResult, Check
from tests.integration.edgestep import exported

TORCH = Point(shape="47M", runtime="pytorch", base="fp32", what="train")
INT4 = Point(shape="47M", runtime="onnx", base="int4", what="train")
INT8 = Point(shape="47M", runtime="onnx", base="int8", what="train")


def said(seconds: list[float], process: float, **more: Any) -> dict[str, Any]:
    return {
        "status": "measured",
        "files_bytes": 5_000_000,
        "resident_bytes": 90_000_000,
        "load_seconds": 0.5,
        "load_peak_bytes": 7_000_000,
        "peak_bytes": 9_000_000,
        "process_bytes": process * 1e6,
        "seconds": seconds,
        "energy": "none",
        "joules": None,
        **more,
    }


def checks(rows: list[edge.Row]) -> dict[str, Check]:
    return {check.name.split(" (")[0]: check for check in edge.checks_of(rows)}


def test_the_large_shape_is_the_one_that_the_promises_name() -> None:
    assert M47.parameters == 47_200_320


def test_every_runtime_is_in_the_grid_beside_the_reference() -> None:
    for shape in ("demo", "47M"):
        for what in ("train", "answer"):
            here = {(p.runtime, p.base) for p in FULL if (p.shape, p.what) == (shape, what)}
            assert REFERENCE in here
            assert here == {(n, base) for n, r in RUNTIMES.items() for base in r.bases(what)}
    for runtime in RUNTIMES.values():
        module = runtime.load()
        assert all(hasattr(module, name) for name in ("prepare", "imports", "trainer", "speaker"))


def test_it_is_listed_and_draws_and_keeps() -> None:
    module = benchmark("edge")
    assert keeping(module) is not None
    assert plotting(module) is not None


def test_words_choose() -> None:
    left = chosen(FULL, ["47M", "train", "int4", "nf4"])
    assert {(p.shape, p.what) for p in left} == {("47M", "train")}
    assert {p.base for p in left} == {"int4", "nf4"}
    with pytest.raises(InvalidValue, match="expected one of"):
        chosen(FULL, ["int5"])


def test_ratios_are_over_pytorch_of_the_same_run_and_times_the_least() -> None:
    found = [said([0.3, 0.2], 600), said([0.1, 0.4], 250)]
    torch, int4 = edge.rows_of([TORCH, INT4], found)
    assert (torch["ms"], torch["time_ratio"], torch["memory_ratio"]) == (200.0, 1.0, 1.0)
    assert int4["time_ratio"] == pytest.approx(0.5)
    assert int4["memory_ratio"] == pytest.approx(250 / 600)
    assert (int4["files_mb"], int4["energy"], int4["joules"]) == (5.0, "none", None)


def test_an_answers_ratio_is_of_its_own_reference() -> None:
    points = [
        TORCH,
        *(Point(shape="47M", runtime=r, base="fp32", what="answer") for r in ("pytorch", "onnx")),
    ]
    answers: list[Any] = [
        {**said([], 500), "first_token_seconds": [0.2, 0.4], "tokens_per_second": [10.0, 20.0]},
        {**said([], 200), "first_token_seconds": [0.1, 0.1], "tokens_per_second": [40.0, 30.0]},
    ]
    for answer in answers:
        del answer["seconds"]
    rows = edge.rows_of(points, [said([9.0], 1), *answers])
    assert (rows[2]["ms"], rows[2]["tokens_per_s"]) == (100.0, 40.0)
    assert (rows[2]["time_ratio"], rows[2]["rate_ratio"]) == (0.5, 2.0)


def test_the_promises_are_about_one_base_that_is_to_keep_both() -> None:
    # int8 is faster and too large, int4 keeps both.
    found = [said([0.2], 600), said([0.19], 290), said([0.1], 400)]
    rows = edge.rows_of([TORCH, INT4, INT8], found)
    assert all(check.passed for check in edge.checks_of(rows))
    assert checks(rows)["an example over PyTorch fp32, time"].measured == pytest.approx(0.95)
    slow = edge.rows_of([TORCH, INT4], [said([0.2], 600), said([0.21], 290)])
    assert not checks(slow)["an example over PyTorch fp32, time"].passed
    large = edge.rows_of([TORCH, INT4], [said([0.2], 600), said([0.1], 301)])
    assert not checks(large)["whole process while training"].passed


def test_without_the_reference_the_promise_is_not_kept() -> None:
    rows = edge.rows_of([INT4], [said([0.1], 200)])
    assert math.isnan(checks(rows)["an example over PyTorch fp32, time"].measured)
    assert not all(check.passed for check in edge.checks_of(rows))


def test_what_is_not_installed_has_a_row_and_no_numbers() -> None:
    rows = edge.rows_of([TORCH, INT4], [said([0.2], 600), {"status": "no onnxruntime"}])
    assert rows[1]["status"] == "no onnxruntime"
    assert "ms" not in rows[1]
    assert edge.checks_of(rows) == ()


def test_what_brings_a_missing_package_is_said() -> None:
    missing = replace(RUNTIMES["llama"], needs=("json", "no_such_package"))
    assert missing.missing() == "no no_such_package: pip install 'fedslm[llama]'"
    assert replace(missing, needs=("json",)).missing() is None


def test_the_plot_names_every_storage_that_was_measured(tmp_path: Path) -> None:
    rows = edge.rows_of([TORCH, INT4], [said([0.2], 600), said([0.1], 250)])
    result = BenchResult(name="edge", parameters={}, rows=tuple(rows))
    edge.plot(result, tmp_path / "edge.svg")
    drawn = (tmp_path / "edge.svg").read_text(encoding="utf-8")
    for word in ("onnx", "int4", "pytorch", "fp32"):
        assert f">{word}<" in drawn


def test_a_case_survives_its_journey() -> None:
    case = Case(
        runtime="onnx",
        quantization="int4",
        what="train",
        base="base",
        folder="step",
        vocabulary=9,
        repetitions=2,
    )
    assert Case.from_json(case.to_json()) == case
    assert case.ids(5, 1) == case.ids(5, 1)
    assert max(case.ids(100, 2)) < 9


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_a_step_is_measured_as_a_device_runs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = exported()
    monkeypatch.setattr("simulations.benchmarks.edge_case.LENGTH", manifest.length)
    case = Case(
        runtime="onnx",
        quantization="fp32",
        what="train",
        base="",
        folder=str(folder),
        vocabulary=manifest.vocabulary,
        repetitions=2,
    )
    main(["train", case.to_json()])
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "measured"
    assert len(found["seconds"]) == 2
    assert 0 < found["norm"] <= 1.0 + 1e-6
    files = sum(path.stat().st_size for path in folder.iterdir())
    assert found["files_bytes"] == files
    assert found["process_bytes"] >= found["resident_bytes"] > 0
    assert found["energy"] in {"counter", "battery", "none"}
    assert (found["joules"] is None) == (found["energy"] == "none")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_a_quick_run_is_kept_and_taken_up_again(tmp_path: Path) -> None:
    words = ("pytorch",)
    result = edge.run(quick=True, asked=Asked(folder=tmp_path, only=words))
    assert [row["status"] for row in result.rows] == ["measured"] * 2
    train, answer = result.rows
    assert float(train["ms"] or 0) > 0
    assert float(answer["tokens_per_s"] or 0) > 0
    assert not (tmp_path / "prepared").exists()
    again = edge.run(quick=True, asked=Asked(folder=tmp_path, only=words, resume=True))
    assert again.rows == result.rows
    assert len(list(tmp_path.iterdir())) == sum(p.runtime == "pytorch" for p in QUICK)
    json.dumps(result.to_dict())
