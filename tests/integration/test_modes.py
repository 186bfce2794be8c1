"""Every way of adding noise runs end to end, on the real model, and charges what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerTampered, PrivacyBudgetExhausted
from shared.privacy.ledger import Ledger
from shared.privacy.plan import PrivacyPlan
from simulations.simulate import Result
from simulations.summarytable import rows
from tests.integration.scenario import run_small

pytestmark = pytest.mark.slow

DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=5",
)
STEPS = (
    "example.neighboring_relation=add-or-remove-one",
    "example.epsilon=20.0",
    "example.delta=1e-3",
    "example.max_grad_norm=0.5",
    "example.sampling_probability=0.5",
)
CORRELATED = ("privacy.mechanism=correlated", "clients.cohort=4.0", "run.rounds=6")
QUANTILE = ("privacy.clipping_quantile=0.5", "privacy.count_noise_stddev=5.0")


def plan_of_run(result: Result) -> PrivacyPlan:
    stored = json.loads((result.folder / "run.json").read_text())["plan"]
    return PrivacyPlan.from_json(stored)


def metrics(result: Result) -> list[dict[str, Any]]:
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def subjects(result: Result) -> set[str]:
    with Ledger(result.folder / "ledger.sqlite", read_only=True) as ledger:
        ledger.verify(trusted_key=result.summary["ledger"]["public_key"])
        return {subject for subject, _ in ledger.subjects()}


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_small(tmp_path_factory.mktemp("distributed") / "run", DISTRIBUTED)


def test_distributed_noise_trains_and_charges_the_population(distributed: Result) -> None:
    summary, plan = distributed.summary, plan_of_run(distributed)
    assert summary["status"] == "completed"
    assert summary["privacy"]["accountant"] == "pld"
    assert summary["privacy"]["noise"] == "skellam"
    assert summary["privacy"]["epsilon"] == pytest.approx(plan.epsilon(), rel=1e-6)
    assert summary["privacy"]["epsilon"] <= 50.0
    assert math.isfinite(summary["privacy"]["server_epsilon"])
    assert summary["privacy"]["server_epsilon"] == pytest.approx(plan.server_epsilon())
    assert subjects(distributed) == {"population"}
    assert all(record["aborted"] is None for record in metrics(distributed))
    assert all(record["answered"] >= 5 for record in metrics(distributed))


def test_distributed_noise_repeats_with_its_seed(distributed: Result, tmp_path: Path) -> None:
    """Keys and masks are fresh, and cancel: the adapter does not depend on them."""
    again = run_small(tmp_path / "run", DISTRIBUTED)
    assert again.summary["loss_after"] == distributed.summary["loss_after"]


@pytest.mark.parametrize("mode", [(), DISTRIBUTED], ids=["central", "distributed"])
def test_dp_sgd_composes_with_either_client_mode(mode: tuple[str, ...], tmp_path: Path) -> None:
    result = run_small(tmp_path / "run", [*mode, *STEPS])
    second = result.summary["privacy"]["example"]
    inner = plan_of_run(result).example
    assert inner is not None
    assert second["unit"] == "example"
    assert 0.0 < second["epsilon"] <= inner.epsilon() <= 20.0
    assert second["delta"] == 1e-3
    assert result.summary["privacy"]["unit"] == "client"
    assert result.summary["privacy"]["epsilon"] <= 50.0
    charged = subjects(result)
    assert "population" in charged
    assert any(subject.startswith("client-") for subject in charged)
    shown = dict(rows(result.summary))
    assert "per example" in shown["  inside clients"]
    assert ("  to the server" in shown) == bool(mode)
    said = " ".join(clause["text"] for clause in result.summary["statement"]["clauses"])
    assert "econd guarantee" in said


def test_correlated_noise_is_paid_for_once(tmp_path: Path) -> None:
    result = run_small(tmp_path / "run", CORRELATED)
    privacy = result.summary["privacy"]
    assert privacy["noise"] == "correlated"
    assert privacy["releases"] == 1
    assert privacy["epsilon"] <= 50.0
    assert {record["epsilon"] for record in metrics(result)} == {privacy["epsilon"]}
    assert subjects(result) == {"population"}
    assert [record["cohort"] for record in metrics(result)] == [4] * 6


def test_a_moving_clip_moves_and_is_charged_like_a_fixed_one(tmp_path: Path) -> None:
    result = run_small(tmp_path / "run", [*QUANTILE, "privacy.clipping_norm=5.0"])
    clips = [record["clipping_norm"] for record in metrics(result)]
    assert clips[0] == 5.0
    assert len(set(clips)) == 3
    assert result.summary["privacy"]["releases"] == 3
    assert result.summary["privacy"]["epsilon"] <= 50.0


@pytest.mark.parametrize("settings", [DISTRIBUTED, CORRELATED, QUANTILE, (*DISTRIBUTED, *STEPS)])
def test_a_stopped_run_goes_on_to_the_same_end(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Oracle: the run that was never stopped."""
    whole = run_small(tmp_path / "whole", settings)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, settings)
    resumed = run_small(stopped, settings, resume=True)
    for key in ("loss_after", "privacy", "status"):
        assert resumed.summary[key] == whole.summary[key]


def _stop_after_first_round(folder: Path, settings: tuple[str, ...]) -> None:
    """Interrupt a run when its first round is reported."""
    from rich.console import Console

    from shared.configfile import resolve
    from simulations.progress import PlainProgress
    from simulations.simulate import simulate
    from tests.integration.scenario import TABLES

    class Impatient(PlainProgress):
        def finished(self, record: Any) -> None:
            raise KeyboardInterrupt

    resolved = resolve(TABLES, settings, source="test")
    progress = Impatient(resolved.config.run.rounds, Console(quiet=True))
    simulate(resolved, folder=folder, resume=False, progress=progress)


def test_two_runs_on_the_same_people_share_a_budget(tmp_path: Path) -> None:
    """The second run of the same cap on the same data finds the budget spent."""
    from rich.console import Console

    from shared.configfile import resolve
    from simulations.progress import PlainProgress
    from simulations.simulate import simulate
    from tests.integration.scenario import TABLES

    shared = tmp_path / "shared.sqlite"
    results = []
    for seed in (5, 6):
        resolved = resolve(TABLES, [f"run.seed={seed}"], source="test")
        results.append(
            simulate(
                resolved,
                folder=tmp_path / str(seed),
                resume=False,
                progress=PlainProgress(3, Console(quiet=True)),
                ledger=str(shared),
            )
        )
    first, second = (result.summary for result in results)
    assert (first["status"], second["status"]) == ("completed", "budget-exhausted")
    assert second["rounds"] < 3
    with Ledger(shared, read_only=True) as ledger:
        spent = ledger.spent("population", "builtin:clinics")
        assert spent.epsilon <= spent.cap
        assert ledger.verify(trusted_key=first["ledger"]["public_key"]).entries > 0


def test_a_folder_whose_ledger_was_signed_by_another_is_found(finished: Result) -> None:
    with (
        Ledger(finished.folder / "ledger.sqlite", read_only=True) as ledger,
        pytest.raises(LedgerTampered),
    ):
        ledger.verify(trusted_key="0" * 64)


def test_a_spent_budget_stops_a_second_guarantee_too(tmp_path: Path) -> None:
    settings = [*STEPS, "example.cap=0.5"]
    with pytest.raises(PrivacyBudgetExhausted):
        run_small(tmp_path / "run", settings)
