"""Groups that other processes compute: the same bits, whatever happens to the processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import ConflictingSettings
from simulations.forks import Fork, can_fork
from simulations.workers import processes_for, workers_of, working_together
from tests.client.conftest import save_model
from tests.client.test_cohortahead import (
    CANARY,
    EMPTY,
    MODES,
    answers,
    instruction_for,
    runtime_of,
)

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux alone")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give torch one thread, as a simulation of a small base does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "llama", "llama")


def _same(one: Any, other: Any) -> bool:
    """Tell whether two answers are equal bit for bit."""
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_no_bit(folder: Path, mode: str, workers: int) -> None:
    chosen = (*MODES[mode], "performance.cohort_batch=2")
    alone = runtime_of(folder, *chosen)
    together = runtime_of(folder, *chosen, f"performance.workers={workers}")
    told = instruction_for(alone)
    with working_together(together) as count:
        assert count == workers
        for kind in ("train", "evaluate", "train"):
            expected, found = (answers(runtime, kind, told) for runtime in (alone, together))
            assert all(_same(one, other) for one, other in zip(found, expected, strict=True))
    assert isinstance(expected[EMPTY], str)
    assert np.allclose(expected[CANARY], 0.25)


def test_a_worker_that_dies_costs_time_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forks: list[Fork] = []
    made = Fork.__init__

    def note(self: Fork, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        forks.append(self)

    monkeypatch.setattr(Fork, "__init__", note)
    chosen = ("performance.cohort_batch=2",)
    alone = runtime_of(folder, *chosen)
    together = runtime_of(folder, *chosen, "performance.workers=2")
    told = instruction_for(alone)
    with working_together(together):
        os.kill(forks[0]._child, signal.SIGKILL)
        expected, found = (answers(runtime, "train", told) for runtime in (alone, together))
    assert all(_same(one, other) for one, other in zip(found, expected, strict=True))
    assert "gone" in caplog.text


def test_where_there_are_no_workers(folder: Path) -> None:
    runtime = runtime_of(folder, "performance.workers=3", "performance.cohort_batch=1")
    assert (workers_of(runtime), processes_for(runtime)) == (1, 3)
    assert workers_of(runtime_of(folder, "performance.workers=3", "run.engine=flower")) == 1
    with pytest.raises(ConflictingSettings, match="threads"):
        runtime_of(folder, "performance.workers=3", "performance.threads=2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert workers_of(runtime) == 1
    finally:
        torch.set_num_threads(before)
    assert 1 <= workers_of(runtime_of(folder)) <= len(os.sched_getaffinity(0))


def test_without_another_process_this_one_does_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    chosen = ("performance.cohort_batch=2",)
    alone = runtime_of(folder, *chosen)
    together = runtime_of(folder, *chosen, "performance.workers=3")
    told = instruction_for(alone)
    with working_together(together) as count:
        assert count == 1
        expected, found = (answers(runtime, "train", told) for runtime in (alone, together))
    assert all(_same(one, other) for one, other in zip(found, expected, strict=True))
    assert "only 0 more" in caplog.text
