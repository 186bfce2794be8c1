"""The benchmark of a private step: its engines agree, its sums are right, and it runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidValue, RunFolderExists
from simulations.benchmarks import dp_step
from simulations.benchmarks.catalog import benchmarks
from simulations.benchmarks.dp_step_case import Case
from simulations.benchmarks.dp_step_peers import NON_PRIVATE, OURS, PEERS, STEPS
from simulations.benchmarks.dp_step_points import ALL, FRONT, FULL, M7, M30, Point, chosen, joined
from simulations.benchmarks.footprintmodel import Shape, write_base
from simulations.benchmarks.protocol import Asked, BenchResult, Check

TINY = Shape(hidden=32, inner=48, layers=2, heads=4, kv_heads=2, vocabulary=2048)
POINT = Point(shape="1M", base="fp32", sequence=8, engines=(NON_PRIVATE, "fused", "vmap"))


def said(seconds: list[float], peak: int, error: float | None = 1e-8) -> dict[str, Any]:
    return {"status": "measured", "seconds": seconds, "peak_bytes": peak, "error": error}


def check_of(rows: list[dp_step.Row], words: str) -> Check:
    (found,) = [check for check in dp_step.checks_of(rows) if check.name.startswith(words)]
    return found


def test_the_shapes_are_as_large_as_their_names() -> None:
    assert round(M7.parameters / 1e6) == 7
    assert round(M30.parameters / 1e6) == 30


def test_the_grid_holds_what_is_promised() -> None:
    points = FULL
    assert {point.shape for point in points} == {"7M", "30M", "135M"}
    for shape in ("7M", "30M", "135M"):
        assert {point.base for point in points if point.shape == shape} == {
            "fp32",
            "bf16",
            "int8",
            "nf4",
        }
    assert {min(p.sequence for p in points), max(p.sequence for p in points)} == {64, 512}
    assert {point.batch for point in points} == {1, 4, 8}
    for point in points:
        # Ratios need both, and a median needs three.
        assert {NON_PRIVATE, "fused", "microbatch"} <= set(point.engines) <= set(STEPS)
        assert point.repetitions >= 3
    for shape in ("7M", "30M", "135M"):
        assert any(p.shape == shape and p.engines == ALL for p in points)


def test_it_is_listed() -> None:
    found = {name.replace("_", "-"): item for name, item in benchmarks().items()}
    assert found["dp-step"].SUMMARY == dp_step.SUMMARY
    assert not {"dp-step-case", "dp-step-peers"} & set(found)


def test_a_case_survives_its_journey() -> None:
    case = Case(
        folder="base", base="nf4", sequence=8, batch=2, engines=("fused", "vmap"), repetitions=1
    )
    assert Case.from_json(case.to_json()) == case


def test_ratios_are_medians_of_the_turns() -> None:
    found = {
        NON_PRIVATE: said([1.0, 2.0, 4.0], 100, None),
        "fused": said([2.0, 2.0, 6.0], 150),
        "vmap": said([4.0, 1.0, 3.0], 300),
    }
    plain, fused, vmap = dp_step.rows_of(POINT, found)
    assert (plain["time_ratio"], plain["memory_ratio"], plain["error"]) == (1.0, 1.0, None)
    # The turns' ratios are 2, 1 and 1.5; the ratio of the medians would be 1.
    assert (fused["seconds"], fused["time_ratio"]) == (2.0, 1.5)
    assert (fused["time_least"], fused["time_most"]) == (1.0, 2.0)
    # 1/2, 2 and 2
    assert (vmap["fused_ratio"], vmap["fused_memory_ratio"]) == (2.0, 0.5)
    rows = [plain, fused, vmap]
    assert check_of(rows, "fused over non-private, time").measured == 1.5
    assert check_of(rows, "fused over the best peer, time").measured == 2.0
    assert check_of(rows, "fused over the best peer, memory").measured == 0.5


def test_the_check_is_on_the_worst_point() -> None:
    rows = [
        row
        for ratio in (1.02, 1.05, 1.01)
        for row in dp_step.rows_of(
            POINT,
            {NON_PRIVATE: said([1.0], 9), "fused": said([ratio], 9), "vmap": said([2.0], 9)},
        )
    ]
    worst = check_of(rows, "fused over non-private, time")
    assert worst.measured == pytest.approx(1.05)
    assert not worst.passed
    assert check_of(rows, "fused over the best peer, time").passed


def test_an_engine_of_ours_that_fails_keeps_no_promise_and_a_peer_may() -> None:
    found = {
        NON_PRIVATE: said([1.0], 9),
        "fused": {"status": "RuntimeError"},
        "vmap": {"status": "RuntimeError"},
    }
    rows = dp_step.rows_of(POINT, found)
    assert [row["status"] for row in rows] == ["measured", "RuntimeError", "RuntimeError"]
    assert math.isnan(check_of(rows, "fused over non-private, time").measured)
    assert math.isnan(check_of(rows, "distance").measured)
    assert not any(check.passed for check in dp_step.checks_of(rows))
    found["fused"] = said([1.0], 9)
    assert check_of(dp_step.rows_of(POINT, found), "fused over non-private, time").passed


def test_a_base_that_the_machine_cannot_hold_is_no_failure() -> None:
    absent = {engine: {"status": "no bf16 here"} for engine in POINT.engines}
    here = {NON_PRIVATE: said([1.0], 9), "fused": said([1.0], 9), "vmap": said([1.0], 9)}
    rows = [*dp_step.rows_of(POINT, here), *dp_step.rows_of(POINT, absent)]
    assert check_of(rows, "fused over non-private, time").passed
    assert check_of(rows, "distance").passed


def test_the_plot_shows_every_engine_that_was_measured(tmp_path: Path) -> None:
    found = {
        NON_PRIVATE: said([1.0], 100, None),
        "fused": said([1.0], 90),
        "vmap": {"status": "RuntimeError"},
    }
    result = BenchResult(
        name="dp-step", parameters={}, rows=tuple(dp_step.rows_of(POINT, found)), checks=()
    )
    dp_step.plot(result, tmp_path / "dp-step.svg")
    drawn = (tmp_path / "dp-step.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert "fused" in drawn
    assert "vmap" not in drawn


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import numpy as np
    import torch

    from client.adapter import adapt
    from client.losses import Batch
    from client.model import load_base
    from shared.lora import initial_factors

    folder = tmp_path_factory.mktemp("dp-step") / "base"
    write_base(folder, TINY)
    model = adapt(load_base(str(folder)), r=4, alpha=8.0, target_modules="all-linear")
    rng = np.random.default_rng(1)
    model.load(initial_factors(model.spec, 1))
    model.load_vector(0.1 * rng.standard_normal(model.spec.size("B"), dtype=np.float32), "B")
    ids = torch.from_numpy(rng.integers(0, TINY.vocabulary, size=(3, 8)))
    return model, Batch(ids=ids, labels=ids, attention_mask=torch.ones_like(ids))


def flat(tiny: Any, engine: str, bound: float) -> Any:
    import torch

    model, batch = tiny
    with model.training(), STEPS[engine](model) as step:
        return torch.cat([g.reshape(-1).double() for g in step.clipped_sum(batch, bound)])


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*OURS, *PEERS])
def test_every_engine_computes_the_same_clipped_sum(tiny: Any, engine: str) -> None:
    import torch

    from client.losses import per_sequence_losses

    model, batch = tiny
    parameters = [parameter for _, parameter in model.trainable]
    rows = []
    for index in range(3):
        loss = per_sequence_losses(model.peft_model, batch.row(index)).sum()
        found = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([gradient.reshape(-1).double() for gradient in found]))
    gradients = torch.stack(rows)
    norms = gradients.norm(dim=1)
    bound = float(norms.median())
    truth = (bound / norms).clamp(max=1.0) @ gradients
    sums = flat(tiny, engine, bound)
    # Peers add up in float32 and add a constant to the norm.
    assert float((sums - truth).norm() / truth.norm()) <= 1e-5
    assert all(parameter.grad is None for parameter in parameters)
    # Nothing stayed attached: the next step is plain.
    mean = flat(tiny, NON_PRIVATE, 1.0)
    assert float((mean - gradients.mean(dim=0)).norm() / mean.norm()) <= 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dp-step") / "points"


@pytest.fixture(scope="module")
def quick(folder: Path) -> BenchResult:
    return dp_step.run(quick=True, asked=Asked(folder=folder))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_a_quick_run(quick: BenchResult) -> None:
    rows = [row for row in quick.rows if row["base"] == "fp32"]
    assert {row["engine"] for row in rows} == set(STEPS)
    for row in rows:
        engine = row["engine"]
        assert row["status"] == "measured", engine
        assert float(row["seconds"] or 0) > 0
        assert float(row["time_least"] or 0) <= float(row["time_ratio"] or 0), engine
        assert float(row["time_ratio"] or 0) <= float(row["time_most"] or 0), engine
        assert float(row["peak_mb"] or 0) > 0, engine
        assert (row["error"] is None) == (engine == NON_PRIVATE)
        if engine != NON_PRIVATE:
            assert float(row["error"] or 1) < (1e-6 if engine in OURS else 1e-4), engine
    memory = {row["engine"]: float(row.get("memory_ratio") or 0) for row in rows}
    assert memory[NON_PRIVATE] == 1.0
    assert memory["microbatch"] < 0.8
    json.dumps(quick.to_dict())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_a_quick_run_with_a_quantised_base(quick: BenchResult) -> None:
    pytest.importorskip("bitsandbytes")
    rows = {row["engine"]: row for row in quick.rows if row["base"] == "nf4"}
    assert set(rows) == set(FRONT)
    for engine in ("fused", "microbatch"):
        assert float(rows[engine]["error"] or 1) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_finished_points_are_kept(
    quick: BenchResult, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunFolderExists, match="points of an earlier benchmark"):
        dp_step.run(quick=True, asked=Asked(folder=folder))
    assert len(list(folder.iterdir())) == 4
    (nf4,) = folder.glob("1M-nf4-*.memory.json")
    nf4.unlink()
    with caplog.at_level("INFO", logger="fedslm.bench"):
        again = dp_step.run(quick=True, asked=Asked(folder=folder, resume=True, only=("fp32",)))
    assert [line.rsplit(": ", 1)[1] for line in caplog.messages] == ["kept"]
    assert again.rows == tuple(row for row in quick.rows if row["base"] == "fp32")
    assert not nf4.exists()


def test_an_engine_that_fails_in_one_half_has_failed() -> None:
    memory = {"status": "measured", "peak_bytes": 3, "error": 1e-8}
    times = {"status": "measured", "seconds": [1.0]}
    broken = {"status": "RuntimeError"}
    assert joined(memory, times) == {**memory, **times}
    assert joined(memory, broken) == joined(broken, times) == broken


def test_words_choose_points() -> None:
    found = chosen(FULL, ["7M", "30M", "nf4", "int8"])
    assert {(point.shape, point.base) for point in found} == {
        (shape, base) for shape in ("7M", "30M") for base in ("nf4", "int8")
    }
    assert {point.batch for point in chosen(FULL, ["batch=8"])} == {8}
    with pytest.raises(InvalidValue, match="sequence=512"):
        chosen(FULL, ["9M"])


def test_no_two_points_share_a_name() -> None:
    assert len({point.name for point in FULL}) == len(FULL)
