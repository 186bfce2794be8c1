"""Runs with simulated attackers: what they achieve, what stops them, on both engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.checkpoint import Checkpoint, write_checkpoint
from shared.errors import InvalidValue, QuorumNotReached
from tests.integration.scenario import run_small

NONE = ["privacy.mode=none", "audit.canaries=0", "clients.cohort=12.0"]
FLIP = ["attack.kind=sign-flip", "attack.share=0.25", "attack.scale=20.0"]
TRIMMED = ["aggregation.robust=trimmed-mean", "aggregation.attackers=0.25"]


def adapter(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = adapter(one), adapter(other)
    return all(np.array_equal(value, b[name]) for name, value in a.items())


def losses(folder: Path, sets: Sequence[str]) -> tuple[float, float]:
    summary = run_small(folder, [*NONE, *sets]).summary
    return summary["loss_before"], summary["loss_after"]


@pytest.mark.slow
def test_attackers_break_the_mean_and_not_the_trimmed_mean(tmp_path: Path) -> None:
    before, honest = losses(tmp_path / "honest", [])
    _, attacked = losses(tmp_path / "attacked", FLIP)
    _, defended = losses(tmp_path / "defended", [*FLIP, *TRIMMED])
    assert honest < before
    assert attacked > before
    assert defended < before
    report = (tmp_path / "attacked" / "report.html").read_text(encoding="utf-8")
    assert "this run contains simulated attackers: 3 clients, sign-flip times 20" in report
    assert "simulated attackers" not in (tmp_path / "honest" / "report.html").read_text("utf-8")
    summary = json.loads((tmp_path / "defended" / "summary.json").read_text(encoding="utf-8"))
    assert summary["defence"] == {
        "rule": "trimmed-mean",
        "attackers": 0.25,
        "norm_bound": None,
        "shortened": 0,
    }


@pytest.mark.slow
def test_a_bound_on_the_norm_counts_whom_it_shortened(tmp_path: Path) -> None:
    summary = run_small(tmp_path / "run", [*NONE, *FLIP, "aggregation.norm_bound=0.05"]).summary
    assert 0 < summary["defence"]["shortened"] <= 36
    assert summary["attack"]["clients"] == 3


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_adapter(tmp_path: Path) -> None:
    sets = [*NONE, *FLIP, "aggregation.robust=geometric-median"]
    whole = run_small(tmp_path / "whole", sets)
    stopped = tmp_path / "stopped"

    class Killed(Exception):
        """The process died."""

    def once(folder: Path, checkpoint: Checkpoint) -> None:
        write_checkpoint(folder, checkpoint)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.strategy.write_checkpoint", once)
        with pytest.raises(Killed):
            run_small(stopped, sets)
    resumed = run_small(stopped, sets, resume=True)
    assert same(whole.folder, resumed.folder)
    shutil.rmtree(stopped)


@pytest.mark.slow
def test_a_round_with_too_few_updates_releases_nothing(tmp_path: Path) -> None:
    """Seed 5 draws cohorts of six and fewer among twelve; Krum against two attackers needs 7."""
    sets = ["privacy.mode=none", "audit.canaries=0", "clients.cohort=8.0", "clients.population=12"]
    krum = ["aggregation.robust=krum", "aggregation.attackers=2", "run.rounds=8"]
    with suppress(QuorumNotReached):
        run_small(tmp_path / "run", [*sets, *krum])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [json.loads(line) for line in lines]
    few = [record for record in rounds if record["cohort"] < 7]
    assert few
    assert all("krum needs 7 updates against 2" in record["aborted"] for record in few)
    assert all(record["aborted"] is None for record in rounds if record["cohort"] >= 7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["backdoor", "label-flip"])
def test_groups_of_clients_and_clients_alone_attack_alike(tmp_path: Path, kind: str) -> None:
    sets = [*NONE, f"attack.kind={kind}", "attack.share=0.5", "attack.scale=3.0"]
    sets += ["attack.prompts=4"]
    alone = run_small(tmp_path / "alone", [*sets, "performance.cohort_batch=1"])
    grouped = run_small(tmp_path / "grouped", [*sets, "performance.workers=1"])
    a, b = adapter(alone.folder), adapter(grouped.folder)
    assert all(np.allclose(value, b[name], atol=1e-4) for name, value in a.items())
    backdoor = alone.summary["attack"]["backdoor"]
    assert (backdoor is not None) == (kind == "backdoor")
    if backdoor is not None:
        assert backdoor["prompts"] == 4
        assert backdoor["log_prob"] > backdoor["base_log_prob"]


def test_a_backdoor_without_room_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    sets = [*NONE, "attack.kind=backdoor", "attack.share=0.1", "data.max_length=24"]
    with pytest.raises(InvalidValue, match="no room for attack"):
        run_small(tmp_path / "run", sets)
    assert not (tmp_path / "run").exists()
