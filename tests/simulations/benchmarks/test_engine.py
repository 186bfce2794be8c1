"""The benchmark of the simulator: its clocks, its centralised loop, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shared.config import RunConfig
from shared.configaggregation import AggregationSection
from shared.lora import initial_factors
from shared.scenarioplan import plan_of
from shared.wire import Instruction
from simulations.assemble import assemble_runtime
from simulations.benchmarks import engine
from simulations.benchmarks.catalog import benchmark
from simulations.benchmarks.engine_central import CentralLoop, batches_of, tokens_of
from simulations.benchmarks.engine_plot import series_of
from simulations.benchmarks.engine_ray import measure as measure_ray
from simulations.benchmarks.engine_rows import Row, row_of_rounds
from simulations.benchmarks.engine_runs import M30, Clock, Work
from simulations.benchmarks.protocol import BenchResult


def unprotected(work: Work) -> RunConfig:
    """Return the work's scenario without privacy, training what it trains."""
    config = work.resolved().config
    privacy = config.privacy.model_copy(update={"mode": "none"})
    policy = AggregationSection(policy="ffa")
    return config.model_copy(update={"privacy": privacy, "aggregation": policy})


def test_the_large_shape_has_thirty_million_weights() -> None:
    assert 29e6 < M30.parameters < 31e6


def test_the_first_round_is_cold_and_left_out() -> None:
    found = {"rounds": [9.0, 1.0, 3.0, 2.0], "central": [5.0, 1.0, 2.0, 1.0]}
    row = row_of_rounds("x", 10, found)
    assert (row["round_s"], row["round_s_min"], row["round_s_max"]) == (2.0, 1.0, 3.0)
    assert (row["timed"], row["cold_s"], row["clients_per_s"]) == (3, 9.0, 5.0)
    assert (row["over_central"], row["ratio_min"], row["ratio_max"]) == (1.5, 1.0, 2.0)


def test_a_single_round_counts() -> None:
    row = row_of_rounds("x", 10, {"rounds": [4.0], "central": [2.0]})
    assert (row["round_s"], row["timed"], row["over_central"]) == (4.0, 1, 2.0)


def test_the_clock_stands_still_between_rounds() -> None:
    import time

    clock = Clock(began=time.perf_counter(), between=lambda: time.sleep(0.05))
    clock.started(1, 1)
    clock.client_done(1, 1, 1)
    for _ in range(3):
        clock.finished({"answered": 1, "bytes_up_per_client": 7})
    assert clock.paused > 0.15
    assert sum(clock.rounds) < 0.05
    assert clock.ended[-1] < 0.05
    assert (clock.answered, clock.up) == ([1, 1, 1], 7)
    assert clock.first_answer is not None


def test_the_plot_has_a_line_for_each_engine_and_the_loop(tmp_path: Path) -> None:
    rows: tuple[Row, ...] = (
        {**row_of_rounds("demo, rounds", 10, {"rounds": [4.0], "central": [2.0]})},
        {**row_of_rounds("demo, rounds", 100, {"rounds": [40.0], "central": [20.0]})},
        {"case": "demo, rounds, Flower's Ray engine", "clients": 10, "clients_per_s": 1.0},
        {"case": "demo, start", "start_s": 1.0},
    )
    result = BenchResult(name="engine", parameters={}, rows=rows)
    assert series_of(result) == {
        "demo, rounds": [(10.0, 2.5), (100.0, 2.5)],
        "demo, centralised loop": [(10.0, 5.0), (100.0, 5.0)],
        "demo, rounds, Flower's Ray engine": [(10.0, 1.0)],
    }
    engine.plot(result, tmp_path / "engine.svg")
    text = (tmp_path / "engine.svg").read_text()
    assert text.startswith("<svg ")
    assert "client-rounds a second" in text


@pytest.mark.slow
def test_the_centralised_loop_takes_the_step_that_a_client_takes() -> None:
    """One client with one record and no privacy: the same gradient, so the same B."""
    config = unprotected(Work(what="rounds", population=1, cohort=1, rounds=1, records=1))
    runtime = assemble_runtime(config, plan_of(config, population=1), base_dir=Path.cwd()).runtime
    spec = runtime.model.spec
    told = Instruction(
        run_id="r",
        server_round=1,
        config_digest=runtime.digests[0],
        plan_digest=runtime.digests[1],
        vector=np.zeros(spec.size("B"), dtype=np.float32),
    )
    update = runtime.train(0, told).vector
    central = CentralLoop(config)
    central.load(initial_factors(spec, config.run.seed))
    batches = batches_of(config, central.tokenizer)
    assert central.train(batches) > 0.0
    assert tokens_of(batches) == runtime.examples(0)[0][0].ids.size
    factors = central.factors()
    assert np.abs(update).max() > 1e-4
    assert np.allclose(spec.flatten(factors, "B"), update, atol=1e-6)
    before = spec.flatten(initial_factors(spec, config.run.seed), "A")
    assert np.array_equal(spec.flatten(factors, "A"), before)


@pytest.mark.slow
def test_the_same_clients_answer_on_flowers_engine() -> None:
    pytest.importorskip("ray", reason="Flower's engine needs the extra fedslm[ray]")
    found = measure_ray(Work(what="alone", population=2, cohort=2, rounds=2))
    assert found["answered"] == [2, 2]
    assert 0.0 < found["connected"] < found["ended"][0] < found["ended"][1]


@pytest.mark.slow
def test_a_quick_run() -> None:
    assert benchmark("engine").SUMMARY == engine.SUMMARY
    result = engine.run(quick=True)
    rows = {str(row["case"]): row for row in result.rows}
    timed = [row for row in result.rows if "over_central" in row]
    assert [row["clients"] for row in timed] == [4, 2]
    for row in timed:
        assert float(str(row["round_s"])) > 0.0
        assert float(str(row["ratio_min"])) <= float(str(row["over_central"]))
    base = float(str(rows["demo, base loaded"]["resident_mb"]))
    million = rows["demo, 1000000 registered, 4 a round"]
    assert float(str(million["peak_mb"])) > base > 50.0
    assert million["rounds"] == 6
    followed = [row["case"] for row in result.rows if ", after round " in str(row["case"])]
    assert [str(case).rsplit(" ", 1)[1] for case in followed] == ["1", "3", "6"]
    starts = [row for row in result.rows if "start_s" in row]
    assert [row["case"] for row in starts] == ["demo, start", "quickstart, start"]
    limits = [check.limit for check in result.checks]
    assert limits == [1.15, 1.15, 3.0, 3.0, 200.0, 20.0, 10.0]
    json.dumps(result.to_dict())
