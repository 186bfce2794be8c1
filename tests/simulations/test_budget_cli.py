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
from shared.privacy.events import GaussianEvent, NeighboringRelation, SkellamEvent
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
    assert found["server_epsilon"] == found["observer_epsilon"] == found["epsilon"]
    assert found["cohort"] is None


DISTRIBUTED = [
    *["budget", "plan", "--mode", "client-distributed", "--delta", "1e-5", "--rounds", "100"],
    *["--sampling-probability", "0.02", "--population", "10000", "--max-participations", "10"],
    *["--honest-fraction", "0.9", "--survivor-fraction", "0.75", "--min-cohort", "50"],
]


def test_distributed_noise_has_three_observers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = as_json(capsys, *DISTRIBUTED, "--epsilon", "3")
    assert found["accountant"] == "pld"
    assert found["noise"] == "skellam"
    assert 2.9 < found["epsilon"] <= 3.0 < found["epsilon_rdp"]
    assert found["epsilon"] < found["observer_epsilon"] < found["server_epsilon"]
    assert found["terms"]["honest_fraction"] == 0.9
    # By hand: the server does not know 0.9 + 0.75 - 1 of the noise's variance.
    event = SkellamEvent(
        noise_multiplier=found["noise_multiplier"] * 0.65**0.5,
        grid=found["terms"]["grid"],
        count=10,
    )
    expected = epsilon_of(
        event,
        delta=1e-5,
        relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        accountant="pld",
    )
    assert found["server_epsilon"] == pytest.approx(expected, rel=1e-6)
    svg = tmp_path / "plan.svg"
    assert run([*DISTRIBUTED, "--epsilon", "3", "--plot", str(svg)]) == 0
    assert "by RDP" in capsys.readouterr().out
    drawn = svg.read_text(encoding="utf-8")
    assert "PLD, reported" in drawn
    assert "RDP, cross-check" in drawn


def test_a_grid_too_coarse_for_pld_is_reported_by_renyi(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    crowd = [*DISTRIBUTED, "--population", "50000000", "--epsilon", "3"]
    found = as_json(capsys, *crowd)
    assert found["accountant"] == "rdp"
    assert 2.9 < found["epsilon"] == found["epsilon_rdp"] <= 3.0
    svg = tmp_path / "plan.svg"
    assert run([*crowd, "--plot", str(svg)]) == 0
    drawn = svg.read_text(encoding="utf-8")
    assert "RDP, reported" in drawn
    assert "PLD" not in drawn


def test_correlated_noise_is_one_release(capsys: pytest.CaptureFixture[str]) -> None:
    correlated = [*PLAN, "--mechanism", "correlated", "--min-separation", "5"]
    found = as_json(capsys, *correlated, "--noise-multiplier", "1.5")
    event = GaussianEvent(noise_multiplier=1.5)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    expected = epsilon_of(event, delta=1e-4, relation=relation)
    assert found["epsilon"] == found["observer_epsilon"] == pytest.approx(expected)
    assert found["releases"] == 1
    assert found["participations"] == 4
    assert found["cohort"] == 200
    assert {row["epsilon"] for row in found["by_round"]} == {found["epsilon"]}
    assert run([*correlated, "--noise-multiplier", "1.5"]) == 0
    assert "1 release," in capsys.readouterr().out


def test_a_clip_that_follows_a_quantile_costs_the_same_epsilon(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fixed = as_json(capsys, *SAMPLED, "--noise-multiplier", "1.1")
    moving = as_json(capsys, *SAMPLED, "--noise-multiplier", "1.1", "--clipping-quantile", "0.5")
    assert moving["epsilon"] == fixed["epsilon"]
    assert moving["terms"]["count_noise_stddev"] == 5.0  # a 20th of the cohort of 100
    # By hand: 1.1 / sqrt(1 - (1.1 / 10)**2)
    assert moving["terms"]["noise_multiplier_of_update"] == pytest.approx(1.106716, rel=1e-5)
    assert run([*SAMPLED, "--noise-multiplier", "1.1", "--clipping-quantile", "0.5"]) == 0
    assert "noise_multiplier_of_update" in capsys.readouterr().out


def test_doubtful_numbers_are_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--population", "50", "--min-cohort", "3", "--delta", "0.03"]
    found = as_json(capsys, *DISTRIBUTED, *arguments, "--noise-multiplier", "0.1")
    said = " ".join(found["warnings"])
    for words in ("not below 1/50", "above 10", "cohort of 1 clients is small"):
        assert words in said


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
        ([*SAMPLED, "--epsilon", "3", "--count-noise-stddev", "2"], errors.ConflictingSettings),
        ([*PLAN, "--epsilon", "3"], errors.InvalidValue),
        ([*DISTRIBUTED, "--epsilon", "3", "--min-cohort", "1"], errors.ConflictingSettings),
        ([*SAMPLED, "--epsilon", "3", "--mechanism", "corelated"], errors.InvalidValue),
        (["budget", "status", "nowhere"], errors.LedgerError),
        (["budget", "export", "nowhere"], errors.LedgerError),
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


def test_a_target_against_the_server_asks_for_more_noise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "budget plan --mode client-distributed --epsilon 8 --delta 1e-3 --rounds 5 --json "
    words += "--sampling-probability 0.5 --population 100 --honest-fraction 0.9 "
    words += "--survivor-fraction 0.8 --min-cohort 20"
    noises = []
    for more in ("", " --server-epsilon 9"):
        assert run((words + more).split()) == 0
        noises.append(json.loads(capsys.readouterr().out)["noise_multiplier"])
    assert noises[1] > noises[0]
    assert (
        run(
            [
                *words.replace("client-distributed", "client-central").split(),
                "--server-epsilon",
                "9",
            ]
        )
        == 14
    )


def test_a_plan_shows_noise_that_changes_and_votes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20 rounds, rounds 6, 11 and 16 have a vote; noise goes from z to z / 2 in 8 stairs."""
    changing = ["--noise-final", "0.5", "--vote-every", "5", "--vote-noise-multiplier", "3"]
    found = as_json(capsys, *SAMPLED, "--noise-multiplier", "2", *changing)
    assert found["terms"]["votes"] == 3
    assert found["terms"]["noise_multiplier_of_last_round"] == 1.0
    noise = {figure["rounds"]: figure["noise_multiplier"] for figure in found["by_round"]}
    assert (noise[1], noise[20]) == (2.0, 1.0)
    fixed = as_json(capsys, *SAMPLED, "--noise-multiplier", "2")
    assert found["epsilon"] > fixed["epsilon"]
    assert run([*SAMPLED, "--noise-multiplier", "2", *changing]) == 0
    assert "noise" in capsys.readouterr().out.split("what if")[0].split("by RDP")[1]
    assert run([*SAMPLED, "--noise-multiplier", "2", "--vote-every", "5"]) != 0
