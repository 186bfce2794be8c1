"""Whole simulations: what is in the run folder, repeatability, resumption, refusal."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from client.adapter import adapt
from client.model import load_base
from server.adapters import read_adapter
from server.strategy import FederatedRun
from shared.errors import (
    NotResumable,
    PrivacyBudgetExhausted,
    RunFolderError,
    RunFolderExists,
)
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.ledger import Ledger
from simulations.basepath import ASSETS
from simulations.cli import run
from simulations.simulate import Result
from tests.integration.scenario import run_small, scenario_text

pytestmark = pytest.mark.slow

MACHINE = {"seconds", "peak_rss_bytes", "ledger"}
CONTRACT = {
    "scenario",
    "seed",
    "rounds",
    "population",
    "cohort",
    "base_model",
    "base_digest",
    "quantization",
    "lora",
    "aggregation",
    "loss_before",
    "loss_after",
    "perplexity_before",
    "perplexity_after",
    "privacy",
    "bytes_up_per_client_round",
    "bytes_down_per_client_round",
    "seconds",
    "peak_rss_bytes",
    "audit",
    "engine",
    "versions",
}
PRIVACY_CONTRACT = {
    "mode",
    "unit",
    "neighboring_relation",
    "epsilon",
    "delta",
    "noise_multiplier",
    "clipping_norm",
    "max_grad_norm",
    "sampling_probability",
    "releases",
    "accountant",
}


def summary_of(result: Result) -> dict[str, Any]:
    return {key: value for key, value in result.summary.items() if key not in MACHINE}


def test_the_run_folder_holds_everything(finished: Result) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {
        "config.toml",
        "metrics.jsonl",
        "ledger.sqlite",
        "adapter",
        "audit.json",
        "summary.json",
        "report.html",
        "evaluation.json",
    }
    assert json.loads((finished.folder / "summary.json").read_text()) == finished.summary
    assert set(finished.summary) >= CONTRACT
    assert set(finished.summary["privacy"]) >= PRIVACY_CONTRACT
    about = {"variant", "r", "alpha", "target_modules", "trainable_parameters", "mixture"}
    assert set(finished.summary["lora"]) == about
    rounds = [json.loads(x) for x in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds] == [1, 2, 3]
    assert all(a["epsilon"] < b["epsilon"] for a, b in itertools.pairwise(rounds))


def test_the_losses_are_held_out_means_over_clients(finished: Result) -> None:
    measured = json.loads((finished.folder / "evaluation.json").read_text())
    for when in ("before", "after"):
        losses = list(measured[when].values())
        assert len(losses) == 12
        assert finished.summary[f"loss_{when}"] == pytest.approx(sum(losses) / 12)
        assert finished.summary[f"perplexity_{when}"] == pytest.approx(
            math.exp(finished.summary[f"loss_{when}"])
        )


def test_epsilon_is_that_of_the_events_that_ran(finished: Result) -> None:
    privacy = finished.summary["privacy"]
    event = GaussianEvent(
        noise_multiplier=privacy["noise_multiplier"],
        sampling_probability=privacy["sampling_probability"],
        count=3,
    )
    expected = epsilon_of(event, delta=1e-3, relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    assert privacy["releases"] == 3
    assert privacy["epsilon"] == pytest.approx(expected, rel=1e-2)
    assert privacy["epsilon"] <= 50.0
    with Ledger(finished.folder / "ledger.sqlite") as ledger:
        ledger.verify()
        assert ledger.open_reservations("any") == ()


def test_the_same_seed_gives_the_same_summary(finished: Result, tmp_path: Path) -> None:
    again = run_small(tmp_path / "run")
    assert summary_of(again) == summary_of(finished)
    other = run_small(tmp_path / "other", ["run.seed=6"])
    assert other.summary["loss_after"] != finished.summary["loss_after"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_loads_the_adapter_to_the_same_logits(finished: Result) -> None:
    """PeftModel on the plain base against our model with the checkpoint's vector."""
    folder = ASSETS / "demo"
    ids = AutoTokenizer.from_pretrained(folder)("Pt seen today", return_tensors="pt").input_ids
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), finished.folder / "adapter"
    ).eval()
    ours = adapt(load_base(str(folder)), r=2, alpha=8.0, target_modules="all-linear", dropout=0.0)
    ours.load(read_adapter(finished.folder / "adapter", ours.spec))
    vector = load_file(finished.folder / "checkpoint.safetensors")["vector"]
    assert np.array_equal(ours.read_vector("B"), vector)
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        found = ours.peft_model(input_ids=ids).logits
        base = theirs.get_base_model()
        with theirs.disable_adapter():
            plain = base(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["privacy.mode=none"],
        ["privacy.mode=example"],
        ["aggregation.policy=fedavg", "model.quantization=int8", "server.averaging=0.5"],
        ["clients.cohort=0.5", "clients.local_epochs=1.0", "privacy.mode=none"],
    ],
    ids=["none", "example", "fedavg-int8", "mostly-empty-cohorts"],
)
def test_every_mode_runs(tmp_path: Path, overrides: list[str]) -> None:
    if "clients.local_epochs=1.0" in overrides:
        overrides = [o for o in overrides if "epochs" not in o]
    summary = run_small(tmp_path / "run", overrides).summary
    assert summary["status"] == "completed"
    assert math.isfinite(summary["loss_after"])
    if summary["privacy"]["mode"] == "none":
        assert summary["privacy"]["epsilon"] is None
        assert "none" in json.dumps(summary["statement"]).lower()
    else:
        assert 0 < summary["privacy"]["epsilon"] <= 50.0


def test_an_example_round_charges_each_client_alone(tmp_path: Path) -> None:
    overrides = ["privacy.mode=example", "clients.local_steps=2", "clients.max_participations=1"]
    result = run_small(tmp_path / "run", overrides)
    with Ledger(result.folder / "ledger.sqlite") as ledger:
        subjects = ledger.subjects()
        assert subjects
        assert all(subject.startswith("client-") for subject, _ in subjects)
        assert all(ledger.spent(*subject).releases == 2 for subject in subjects)
    assert result.summary["privacy"]["releases"] == 2


def test_a_finished_run_is_not_run_again(finished: Result) -> None:
    before = (finished.folder / "ledger.sqlite").stat().st_mtime_ns
    again = run_small(finished.folder, resume=True)
    assert again.summary == finished.summary
    assert (finished.folder / "ledger.sqlite").stat().st_mtime_ns == before


def test_folders_are_not_overwritten(finished: Result, tmp_path: Path) -> None:
    with pytest.raises(RunFolderExists):
        run_small(finished.folder)
    with pytest.raises(NotResumable, match="another scenario"):
        run_small(finished.folder, ["run.seed=99"], resume=True)
    (tmp_path / "x").write_text("mine")
    with pytest.raises(NotResumable, match="not empty"):
        run_small(tmp_path, resume=True)
    assert (tmp_path / "x").read_text() == "mine"


def test_a_cap_below_the_plan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PrivacyBudgetExhausted):
        run_small(tmp_path / "run", ["privacy.cap=10.0"])
    assert not (tmp_path / "run").exists()


def test_rounds_repeated_with_fresh_noise_are_charged_again(tmp_path: Path) -> None:
    """Losing the checkpoints must over-count: the ledger still knows what was released."""
    fresh = ["privacy.noise_source=os-entropy"]
    first = run_small(tmp_path / "run", fresh)
    assert first.summary["status"] == "completed"
    for name in ("checkpoint.safetensors", "summary.json"):
        (first.folder / name).unlink()
    again = run_small(tmp_path / "run", fresh, resume=True)
    assert again.summary["status"] == "budget-exhausted"
    assert again.summary["rounds"] == 0
    assert again.summary["privacy"]["releases"] == 3
    assert again.summary["privacy"]["epsilon"] <= 50.0


def test_runs_are_compared(finished: Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(finished.folder), str(finished.folder), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert f"{finished.summary['loss_after']:.3f}" in lines[2]
    assert run(["compare", str(finished.folder), "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)["runs"]
    assert shown["loss_after"] == finished.summary["loss_after"]
    assert run(["compare", str(finished.folder)]) == 0
    assert run(["compare", str(finished.folder.parent)]) == RunFolderError.exit_code


def start(folder: Path, scenario: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "simulations.cli", "simulate", str(scenario)]
    return subprocess.Popen(
        [*command, "--out", str(folder), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def kill_after(process: subprocess.Popen[bytes], metrics: Path, server_round: int) -> None:
    """Kill a run as soon as it says that a round is over."""
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= server_round:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()


def test_a_run_that_is_killed_twice_goes_on_to_the_same_adapter(
    finished: Result, tmp_path: Path
) -> None:
    """After the first round and, resumed, after the second; the third time it ends."""
    scenario = tmp_path / "small.toml"
    scenario.write_text(scenario_text())
    folder = tmp_path / "run"
    kill_after(start(folder, scenario), folder / "metrics.jsonl", 1)
    kill_after(start(folder, scenario, "--resume"), folder / "metrics.jsonl", 2)
    resumed = start(folder, scenario, "--resume")
    assert resumed.wait() == 0
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("loss_after", "privacy", "audit", "rounds"):
        assert summary[key] == finished.summary[key]
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.verify()
    mine = load_file(folder / "adapter" / "adapter_model.safetensors")
    theirs = load_file(finished.folder / "adapter" / "adapter_model.safetensors")
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("server_round", [1, 3])
def test_a_run_killed_while_it_measures_a_round_has_every_line(
    server_round: int, finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is there, the loss is not: the round is measured again, not trained again."""
    measure = FederatedRun.measure

    def killed(self: FederatedRun, *arguments: Any, group: str, **more: Any) -> dict[int, float]:
        if group == f"m{server_round}":
            raise KeyboardInterrupt
        return measure(self, *arguments, group=group, **more)

    with monkeypatch.context() as patch:
        patch.setattr(FederatedRun, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run_small(tmp_path / "run")
    result = run_small(tmp_path / "run", resume=True)

    def lines(folder: Path) -> list[dict[str, Any]]:
        read = (folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in read]

    assert lines(result.folder) == lines(finished.folder)
    assert result.summary["loss_after"] == finished.summary["loss_after"]
    assert result.summary["privacy"] == finished.summary["privacy"]
