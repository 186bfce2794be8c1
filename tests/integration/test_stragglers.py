"""Whole runs with stragglers, on both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.checkpoint import read_checkpoint
from server.prepared import read_metrics
from shared.errors import ConflictingSettings
from simulations.simulate import Result
from tests.integration.scenario import run_small

CLOCK = (
    "audit.canaries=0",
    "clock.shares=[0.6, 0.4]",
    "clock.step_seconds=[2.0, 30.0]",
    "clock.upload=[1e5, 1e4]",
    "clock.download=[1e6, 1e5]",
    "clock.available_share=0.7",
    "clock.period_seconds=600.0",
    "clock.dropout=0.1",
    "clock.deadline_seconds=200.0",
    "server.quorum=0.0",
    "evaluation.final_clients=4",
)
BUFFER = ("buffer.size=3", "buffer.concurrency=5")


def vector(result: Result) -> np.ndarray:
    found = read_checkpoint(result.folder, config_digest=result.summary["config_digest"])
    assert found is not None
    return np.array(found.vector)


@pytest.mark.slow
def test_an_asynchronous_run_of_protected_examples_says_its_time(tmp_path: Path) -> None:
    said = ("privacy.mode=example", *CLOCK, *BUFFER)
    result = run_small(tmp_path / "run", said)
    records = read_metrics(result.folder)
    times = [record["simulated_seconds"] for record in records]
    assert times == sorted(times)
    assert result.summary["simulated_seconds"] == times[-1] > 0
    assert {"staleness", "in_flight"} <= set(records[0])
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "Held-out loss by simulated time" in page
    again = run_small(tmp_path / "again", said)
    assert np.array_equal(vector(result), vector(again))


def test_over_selection_without_a_clock_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    said = ("privacy.mode=none", "server.over_selection=1.5")
    with pytest.raises(ConflictingSettings, match="needs a clock in a simulation"):
        run_small(tmp_path / "run", said)
    assert not (tmp_path / "run").exists()
