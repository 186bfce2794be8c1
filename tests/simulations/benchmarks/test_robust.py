"""The benchmark of defences: its arms, its table, and one quick run from start to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shared.errors import InvalidValue, RunFolderExists
from simulations.benchmarks import robust
from simulations.benchmarks.protocol import Asked
from simulations.benchmarks.robust_arms import ATTACKS, DEFENCES, SEEDS, SHARES, Arm, arms
from simulations.benchmarks.robust_runs import Outcome, read, table


def outcome(arm: Arm, *, loss: float, success: float | None = None) -> Outcome:
    return Outcome(
        arm=arm, loss_before=5.0, loss=loss, success=success, log_prob=success, seconds=1.0
    )


class TestArms:
    def test_every_defence_meets_every_attack_at_every_share_and_none(self) -> None:
        found = arms([], quick=False)
        each = len(ATTACKS) * len(SHARES) + 1
        assert len(found) == len(DEFENCES) * each * len(SEEDS)
        assert len({arm.name for arm in found}) == len(found)
        assert [arm.seed for arm in found] == sorted(arm.seed for arm in found)
        for arm in found:
            config = arm.resolved.config
            assert config.attack.share == arm.share
            assert (arm.share == 0.0) == (arm.attack == "none")
            assert config.attack.kind == ("backdoor" if arm.attack == "none" else arm.attack)
            bounded = config.aggregation.norm_bound is not None
            assert (config.aggregation.robust, bounded) == {
                "mean": ("mean", False),
                "norm-bound": ("mean", True),
            }.get(arm.defence, (arm.defence, False))

    def test_words_choose(self) -> None:
        found = arms(["krum", "attack=backdoor", "share=0.3", "seed=9"], quick=False)
        assert [arm.name for arm in found] == ["krum-backdoor-30-seed-9"]
        assert str(found[0]) == "krum, backdoor by 30%, seed 9"
        with pytest.raises(InvalidValue):
            arms(["krumm"], quick=False)


class TestTable:
    def test_medians_and_ranges_are_over_seeds(self) -> None:
        three = arms(["mean", "attack=backdoor", "share=0.1"], quick=False)
        (clean,) = arms(["mean", "attack=none", "seed=7"], quick=False)
        found = [
            outcome(arm, loss=loss, success=rate)
            for arm, loss, rate in zip(three, (1.0, 3.0, 2.0), (0.5, 0.0, 1.0), strict=True)
        ]
        rows = table([*found, outcome(clean, loss=4.0)])
        assert [row["attack"] for row in rows] == ["backdoor", "none"]
        first, second = rows
        assert (first["seeds"], first["loss"], first["loss_min"], first["loss_max"]) == (3, 2, 1, 3)
        assert (first["backdoor"], first["backdoor_min"], first["backdoor_max"]) == (0.5, 0.0, 1.0)
        assert (second["seeds"], second["backdoor"], second["target_log_prob"]) == (1, None, None)

    def test_a_destroyed_model_has_no_loss(self) -> None:
        (arm,) = arms(["mean", "attack=scaled", "share=0.3", "seed=7"], quick=False)
        summary = {"loss_before": 5.0, "loss_after": None, "attack": {"backdoor": None}}
        assert math.isnan(read(arm, {**summary, "seconds": 1.0}).loss)


@pytest.mark.slow
def test_a_quick_run_keeps_what_it_has_done_and_draws(tmp_path: Path) -> None:
    asked = Asked(folder=tmp_path / "runs", only=("mean",))
    first = robust.run(quick=True, asked=asked)
    assert [(row["attack"], row["defence"]) for row in first.rows] == [
        ("none", "mean"),
        ("backdoor", "mean"),
    ]
    with pytest.raises(RunFolderExists):
        robust.run(quick=True, asked=asked)
    times = {path: path.stat().st_mtime_ns for path in asked.folder.glob("*/summary.json")}
    more = robust.run(quick=True, asked=Asked(folder=asked.folder, resume=True))
    assert len(more.rows) == 4
    assert all(path.stat().st_mtime_ns == written for path, written in times.items())
    for row in more.rows:
        name = f"{row['defence']}-{row['attack']}-{100 * float(str(row['attackers'])):.0f}-seed-7"
        summary = json.loads((asked.folder / name / "summary.json").read_text(encoding="utf-8"))
        assert row["loss"] == summary["loss_after"]
        assert row["backdoor"] == summary["attack"]["backdoor"]["success"]
    robust.plot(more, tmp_path / "robust.svg")
    drawn = (tmp_path / "robust.svg").read_text(encoding="utf-8")
    assert "trimmed-mean" in drawn
    assert "no attack" in drawn
