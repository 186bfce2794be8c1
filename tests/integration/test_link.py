"""Coded links in whole runs: every mode, both engines, killed and resumed, alone and grouped."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.residuals import FOLDER
from server.release import Release, Releaser
from simulations.simulate import Result
from tests.integration.scenario import run_small

pytestmark = pytest.mark.slow

NONE = ("privacy.mode=none", "audit.canaries=0")
TOPK = (*NONE, "link.up=topk", "link.keep=0.1", "link.down=delta", "link.entropy=true")


def adapter(result: Result) -> np.ndarray:
    found: np.ndarray = load_file(result.folder / "checkpoint.safetensors")["vector"]
    return found


def same(one: Result, other: Result) -> bool:
    return np.array_equal(adapter(one), adapter(other))


@pytest.fixture(scope="module", name="sparse")
def _sparse(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_small(tmp_path_factory.mktemp("sparse") / "run", TOPK)


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        (("privacy.mode=none", "link.up=fp16", "link.down=fp16"), 0.5),
        (("privacy.mode=example", "link.up=int4", "link.entropy=true"), 0.14),
        (("privacy.mode=client-central", "link.up=int8"), 0.26),
        (("privacy.mode=client-central", "link.up=topk", "link.keep=0.1"), 0.06),
    ],
    ids=["none", "example", "central", "central-topk"],
)
def test_every_mode_runs_and_shows_the_coded_bytes(
    tmp_path: Path, overrides: tuple[str, ...], most: float
) -> None:
    summary = run_small(tmp_path / "run", [*overrides, "audit.canaries=0"]).summary
    assert math.isfinite(summary["loss_after"])
    assert summary["loss_after"] < summary["loss_before"] + 0.05
    whole = 4 * summary["lora"]["trainable_parameters"]
    # Names, digests and an array's header are some 350 bytes.
    assert summary["bytes_up_per_client_round"] <= most * whole + 400
    assert summary["link"]["up"] == overrides[1].partition("=")[2]


def test_a_run_that_was_killed_goes_on_to_the_same_adapter(
    sparse: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in round 3 after every client had answered: what they had left is that of round 2."""
    real = Releaser.release

    def dying(self: Releaser, messenger: Any, instruction: Any, cohort: Any) -> Release:
        found = real(self, messenger, instruction, cohort)
        if instruction.server_round == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Releaser, "release", dying)
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path / "run", TOPK)
    assert list((tmp_path / "run" / FOLDER).iterdir())
    monkeypatch.undo()
    resumed = run_small(tmp_path / "run", TOPK, resume=True)
    assert same(resumed, sparse)
    assert resumed.summary["loss_after"] == sparse.summary["loss_after"]


def test_what_was_left_matters(sparse: Result, tmp_path: Path) -> None:
    """The control of the test above: without the files the adapter is another one."""
    folder = tmp_path / "run"
    run_small(folder, [*TOPK, "run.rounds=3"])
    other = run_small(tmp_path / "other", [*TOPK, "link.keep=0.11"])
    assert not same(other, sparse)
    files = sorted((folder / FOLDER).iterdir())
    assert files
    assert all(any(array.any() for array in load_file(file).values()) for file in files)
    shutil.rmtree(folder / FOLDER)


def test_workers_change_no_bit_and_groups_rounding_alone(sparse: Result, tmp_path: Path) -> None:
    two = run_small(tmp_path / "two", [*TOPK, "performance.workers=2"])
    assert same(two, sparse)
    alone = run_small(tmp_path / "alone", [*TOPK, "performance.cohort_batch=1"])
    # A number near the edge of the largest may be sent a round later.
    found, expected = adapter(alone), adapter(sparse)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    assert alone.summary["loss_after"] == pytest.approx(sparse.summary["loss_after"], rel=1e-3)
