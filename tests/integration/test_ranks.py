"""Whole small runs whose clients train different ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.checkpoint import Checkpoint, write_checkpoint
from simulations.simulate import Result
from tests.integration.scenario import run_small

pytestmark = pytest.mark.slow

MIX = (
    "lora.r=4",
    "devices.mix={pi5 = 0.5, laptop = 0.5}",
    "clients.population=6",
    "clients.cohort=4.0",
    "run.rounds=2",
    "data.records=4",
    "audit.canaries=0",
    "evaluation.clients=1",
    "server.optimizer=mean",
)
RANKS = (*MIX, "devices.ranks={pi5 = 2}")
DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=4",
    "privacy.epsilon=5.0",
    "privacy.delta=1e-3",
)
PLAIN = ("privacy.mode=none", "aggregation.policy=flexlora")


def adapter(result: Result) -> dict[str, np.ndarray]:
    return load_file(result.folder / "adapter" / "adapter_model.safetensors")


def lines(result: Result) -> list[dict[str, Any]]:
    read = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in read]


def assert_close(one: Result, other: Result, tolerance: float) -> None:
    a, b = adapter(one), adapter(other)
    length = np.sqrt(sum(float(np.square(v).sum()) for k, v in a.items() if "lora_B" in k))
    apart = np.sqrt(sum(float(np.square(a[name] - b[name]).sum()) for name in a))
    assert length > 0
    assert apart <= tolerance * length


@pytest.mark.parametrize(
    "settings", [(), ("privacy.mode=example",), PLAIN], ids=["central", "example", "flexlora"]
)
def test_equal_ranks_are_the_run_without_them_bit_for_bit(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    plain = run_small(tmp_path / "plain", [*MIX, *settings])
    ranks = run_small(tmp_path / "ranks", [*MIX, *settings, "devices.ranks={pi5 = 4}"])
    for name, factor in adapter(plain).items():
        np.testing.assert_array_equal(factor, adapter(ranks)[name])


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("privacy.mode=example",),
        ("privacy.mode=none", "aggregation.policy=rolora"),
        PLAIN,
        DISTRIBUTED,
    ],
    ids=["central", "example", "rolora", "flexlora", "distributed"],
)
def test_one_after_another_and_together_give_the_same_adapter(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    one = run_small(tmp_path / "one", [*RANKS, *settings, "performance.cohort_batch=1"])
    many = run_small(tmp_path / "many", [*RANKS, *settings, "performance.cohort_batch=3"])
    assert_close(one, many, 1e-4)
    by_rank = lines(one)[0]["bytes_by_rank"]
    assert by_rank["2"]["down"] < 0.6 * by_rank["4"]["down"]
    if settings == DISTRIBUTED:
        # Masks have one length.
        assert by_rank["2"]["up"] == by_rank["4"]["up"]
    else:
        assert by_rank["2"]["up"] < 0.6 * by_rank["4"]["up"]


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("settings", [(), PLAIN], ids=["ffa", "flexlora"])
def test_a_killed_run_goes_on_to_the_same_adapter(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [*RANKS, *settings, "clients.cohort=6.0"]
    whole = run_small(tmp_path / "whole", said)
    written: list[int] = []

    def dies(folder: Path, checkpoint: Checkpoint) -> None:
        if written:
            raise Killed
        written.append(checkpoint.server_round)
        write_checkpoint(folder, checkpoint)

    monkeypatch.setattr("server.strategy.write_checkpoint", dies)
    with pytest.raises(Killed):
        run_small(tmp_path / "run", said)
    monkeypatch.undo()
    resumed = run_small(tmp_path / "run", said, resume=True)
    for name, factor in adapter(whole).items():
        np.testing.assert_array_equal(factor, adapter(resumed)[name])
    assert resumed.summary["ranks"] == whole.summary["ranks"]


def test_summary_report_audits_and_clock_know_ranks(tmp_path: Path) -> None:
    said = [
        *RANKS,
        "privacy.mode=none",
        "evaluation.final_clients=6",
        "data.holdout=0.5",
        "personal.steps=2",
        "personal.learning_rate=0.3",
        "personal.clients=6",
        "audit.profile=smoke",
        "clients.learning_rate=1.0",
        "clock.shares=[1.0]",
        "clock.step_seconds=[1.0]",
        "clock.upload=[1e3]",
        "clock.download=[1e9]",
    ]
    result = run_small(tmp_path / "run", said)
    thin, wide = result.summary["ranks"]
    assert (thin["rank"], thin["devices"], thin["clients"]) == (2, ["pi5"], 3)
    assert (wide["rank"], wide["devices"], wide["clients"]) == (4, ["laptop"], 3)
    assert thin["bytes_up"] < 0.6 * wide["bytes_up"]
    assert wide["loss_held"] == pytest.approx(wide["loss_after"], rel=1e-5)
    assert thin["loss_held"] != pytest.approx(thin["loss_after"], rel=1e-7)
    assert thin["loss_held"] < thin["loss_before"]
    assert result.summary["personal"]["clients"] == 6
    assert result.summary["audit"]["verdict"] != "violation"
    report = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "Clients by the rank that they train" in report
    # A round lasts as long as the upload of the largest rank.
    last = lines(result)[-1]["simulated_seconds"]
    assert last == pytest.approx(2 * (1.0 + wide["bytes_up"] / 1e3), rel=0.02)
