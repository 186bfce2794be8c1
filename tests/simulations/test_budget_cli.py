"""``fedslm budget``: plans agree with the accountant, status and verify with the ledger."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from shared import errors
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from simulations.cli import run
from simulations.simulate import Result
from tests.integration.scenario import run_small

PLAN = ["budget", "plan", "--mode", "client-central", "--delta", "1e-4", "--rounds", "20"]
SAMPLED = [*PLAN, "--sampling-probability", "0.1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_small(tmp_path_factory.mktemp("budget") / "run", ["run.rounds=2"])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_a_plan_from_noise_has_the_accountants_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *SAMPLED, "--noise-multiplier", "1.1")
    event = GaussianEvent(noise_multiplier=1.1, sampling_probability=0.1, count=20)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    assert found["epsilon"] == pytest.approx(epsilon_of(event, delta=1e-4, relation=relation))
    assert found["epsilon_rdp"] > found["epsilon"]
    assert set(found) >= {
        "mode",
        "unit",
        "neighboring_relation",
        "epsilon",
        "delta",
        "noise_multiplier",
        "sampling_probability",
        "rounds",
        "steps",
        "accountant",
        "epsilon_rdp",
    }


def test_a_plan_from_epsilon_keeps_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    svg = tmp_path / "plan.svg"
    assert run([*SAMPLED, "--epsilon", "3", "--plot", str(svg)]) == 0
    shown = capsys.readouterr().out
    assert "what if" in shown
    assert "per client" in shown
    assert svg.read_text(encoding="utf-8").lstrip().startswith("<svg")
    found = as_json(capsys, *SAMPLED, "--epsilon", "3")
    assert 2.9 < found["epsilon"] <= 3.0


def test_example_mode_counts_local_steps(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sampling-probability", "0.05", "--noise-multiplier", "1.0", "--steps", "4"]
    example = [*PLAN[:2], "--mode", "example", *PLAN[4:], *arguments, "--dataset-size", "500"]
    found = as_json(capsys, *example)
    assert found["releases"] == 80
    assert found["unit"] == "example"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([*SAMPLED], errors.ConflictingSettings),
        ([*SAMPLED, "--epsilon", "nan"], errors.FedSLMError),
        ([*SAMPLED, "--epsilon", "3", "--noise-multiplier", "1"], errors.ConflictingSettings),
        ([*PLAN, "--sampling-probability", "2", "--epsilon", "3"], errors.InvalidValue),
        (
            ["budget", "plan", "--mode", "none", *SAMPLED[4:], "--epsilon", "3"],
            errors.InvalidValue,
        ),
        (["budget", "status", "nowhere"], errors.LedgerError),
        (["budget", "verify", "nowhere"], errors.LedgerError),
    ],
)
def test_bad_input(
    arguments: list[str],
    error: type[errors.FedSLMError],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(arguments)
    shown = capsys.readouterr()
    assert code == error.exit_code or (error is errors.FedSLMError and code >= 10)
    assert "error [" in shown.err
    assert not Path("nowhere").exists()


@pytest.mark.slow
def test_status_says_what_the_summary_says(
    finished: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "budget", "status", str(finished.folder), "--subject", "population")
    privacy = finished.summary["privacy"]
    assert found["spent"] == {"epsilon": privacy["epsilon"], "delta": privacy["delta"]}
    assert found["cap"] == privacy["cap"]
    assert found["remaining"] == pytest.approx(privacy["cap"] - privacy["epsilon"])
    assert found["entries"] == 2
    everyone = as_json(capsys, "budget", "status", str(finished.folder))
    assert everyone["subjects"] == [found]
    assert run(["budget", "status", str(finished.folder)]) == 0
    assert "population" in capsys.readouterr().out
    unknown = ["budget", "status", str(finished.folder), "--subject", "nobody"]
    assert run(unknown) == errors.LedgerError.exit_code


@pytest.mark.slow
def test_verify_finds_an_edit_and_a_cut(
    finished: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = as_json(capsys, "budget", "verify", str(finished.folder))
    assert whole["whole"] is True
    assert not whole["anchored"]
    anchored = as_json(capsys, "budget", "verify", str(finished.folder), "--anchor", whole["head"])
    assert anchored["anchored"]
    assert run(["budget", "verify", str(finished.folder)]) == 0
    copy = tmp_path / "ledger.sqlite"
    shutil.copy(finished.folder / "ledger.sqlite", copy)
    with sqlite3.connect(copy) as db:
        names = [r[0] for r in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'")]
        for name in names:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE entries SET server_round = 9 WHERE seq = 1")
    capsys.readouterr()
    assert run(["budget", "verify", str(copy)]) == errors.LedgerTampered.exit_code
    assert "1" in capsys.readouterr().err
    bad = ["budget", "verify", str(finished.folder), "--anchor", "x"]
    assert run(bad) == errors.UsageError.exit_code
