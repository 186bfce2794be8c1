"""Whole runs that go on from an earlier adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.prepared import open_prepared
from shared.errors import NotResumable
from tests.integration.scenario import run_small
from tests.integration.test_modes import _stop_after_first_round
from tests.integration.test_schedules import SMALL, adapter, same

pytestmark = pytest.mark.slow

ONE = (*SMALL, "run.rounds=1", "server.optimizer=mean", "server.momentum=0.0")


def test_two_runs_of_a_round_are_one_where_nothing_but_the_adapter_goes_on(tmp_path: Path) -> None:
    """With a frozen A, a run of no rounds' change goes on from exactly the earlier B.

    The second run has another seed for data and cohorts, and lora.seed for the A of the first; its
    measurement before the first round is the first run's after the last.
    """
    first = run_small(tmp_path / "first", ONE)
    said = [*ONE, f"run.warm_start={first.folder}", "run.seed=6", "lora.seed=5"]
    folder = tmp_path / "second"
    second = run_small(folder, said)
    assert second.summary["loss_before"] == pytest.approx(first.summary["loss_after"], rel=0.2)
    start = load_file(folder / "start.safetensors")["vector"]
    earlier = adapter(first)
    b = np.concatenate([earlier[n].reshape(-1) for n in sorted(earlier) if "lora_B" in n])
    assert np.array_equal(start, b)
    assert all(np.array_equal(adapter(second)[n], earlier[n]) for n in earlier if "lora_A" in n)
    note = second.summary["warm_start"]
    assert note["privacy"]["epsilon"] == first.summary["privacy"]["epsilon"]
    assert note["charged_together"] is False
    assert note["meaning"] in second.summary["warnings"]
    assert first.summary["warm_start"] is None


def test_a_stopped_run_needs_the_earlier_one_no_more(tmp_path: Path) -> None:
    first = run_small(tmp_path / "first", ONE)
    said = (*SMALL, f"run.warm_start={first.folder}")
    whole = run_small(tmp_path / "whole", said)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, said)
    shutil.rmtree(first.folder)
    with open_prepared(stopped) as run:
        assert np.array_equal(
            run.initial_vector, load_file(stopped / "start.safetensors")["vector"]
        )
    assert same(run_small(stopped, said, resume=True), whole)
    other = tmp_path / "other"
    shutil.copytree(whole.folder, other)
    (other / "summary.json").unlink()
    (other / "start.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(NotResumable, match="not the one that the run began with"):
        run_small(other, said, resume=True)
