"""Runs that stop by themselves: by losses, by public text, by votes that are charged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.configfile import resolve
from shared.errors import ConfigError, ConflictingSettings, DataFileNotFound
from shared.privacy.ledger import Ledger
from simulations.simulate import Result
from tests.integration.scenario import TABLES, run_small
from tests.integration.test_modes import _stop_after_first_round
from tests.integration.test_schedules import SMALL, same

STOPPING = ("stopping.patience=1", "stopping.min_improvement=100.0")
PUBLIC = (*STOPPING, "stopping.on=public", "stopping.public_documents=8")
VOTE = (*STOPPING, "stopping.on=vote", "stopping.vote_noise_multiplier=0.5", "data.holdout=0.3")


def lines(result: Result) -> list[dict[str, Any]]:
    text = (result.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def charged(result: Result) -> dict[int, object]:
    with Ledger(result.folder / "ledger.sqlite", read_only=True) as ledger:
        ledger.verify()
        return {c.server_round: c.event for c in ledger.charges("builtin:clinics")}


@pytest.mark.slow
def test_a_run_stops_and_a_resumed_one_at_the_same_round(tmp_path: Path) -> None:
    """Nothing counts as better: the first round is the best, the second one too many."""
    settings = (*SMALL, "run.rounds=4", "privacy.mode=none", *STOPPING)
    whole = run_small(tmp_path / "whole", settings)
    assert (whole.summary["rounds"], whole.summary["planned_rounds"]) == (2, 4)
    assert whole.summary["status"] == "completed"
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, settings)
    resumed = run_small(stopped, settings, resume=True)
    assert resumed.summary["rounds"] == 2
    assert same(resumed, whole)


@pytest.mark.parametrize("mode", ["example", "client-central"])
def test_under_privacy_nobody_looks_at_losses_for_free(mode: str) -> None:
    with pytest.raises(ConfigError, match="no event pays"):
        resolve(TABLES, [f"privacy.mode={mode}", *STOPPING], source="test")


@pytest.mark.slow
def test_by_public_text_a_private_run_stops_and_claims_all_planned_rounds(tmp_path: Path) -> None:
    settings = (*SMALL, "run.rounds=4", *PUBLIC)
    whole = run_small(tmp_path / "whole", settings)
    assert whole.summary["rounds"] == 2
    assert [round_["public_loss"] > 0 for round_ in lines(whole)] == [True, True]
    assert len(charged(whole)) == 2
    privacy = whole.summary["privacy"]
    note = privacy["stopping"]
    assert note["stopped"]
    assert privacy["epsilon"] == note["epsilon_bound"] <= 50.0
    assert note["epsilon_rounds_run"] < note["epsilon_at_stop"] < note["epsilon_bound"]
    assert any("all planned rounds" in text for text in whole.summary["warnings"])
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, settings)
    resumed = run_small(stopped, settings, resume=True)
    assert same(resumed, whole)
    assert [r["public_loss"] for r in lines(resumed)] == [r["public_loss"] for r in lines(whole)]


@pytest.mark.slow
def test_votes_are_charged_with_their_round_and_stop_a_run(tmp_path: Path) -> None:
    """Round 2 is the first to vote, and nothing is better by 100 nats: the run ends with it."""
    settings = (*SMALL, "run.rounds=4", *VOTE, "link.down=fp16")
    whole = run_small(tmp_path / "whole", settings)
    first, second = lines(whole)
    assert "vote" not in first
    assert second["vote"] < 0
    z = whole.summary["privacy"]["noise_multiplier"]
    noises = {t: getattr(event, "noise_multiplier", 0.0) for t, event in charged(whole).items()}
    assert noises == pytest.approx({1: z, 2: (z**-2 + 0.5**-2) ** -0.5})
    assert whole.summary["privacy"]["epsilon"] <= 50.0
    assert whole.summary["privacy"]["vote"] == {"every": 1, "noise_multiplier": 0.5}
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, settings)
    resumed = run_small(stopped, settings, resume=True)
    assert same(resumed, whole)
    assert lines(resumed)[1]["vote"] == second["vote"]


def test_without_a_guarantee_votes_are_losses() -> None:
    resolve(TABLES, [*VOTE, "privacy.mode=none"], source="test")


def test_public_text_that_is_not_there_is_found_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataFileNotFound, match=r"missing\.txt"):
        run_small(tmp_path / "run", [*SMALL, *PUBLIC, "stopping.public_text=missing.txt"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("privacy.mode=example", *VOTE), "its own vote"),
        (
            (
                "privacy.mode=client-distributed",
                "privacy.honest_fraction=0.9",
                "privacy.survivor_fraction=0.9",
                "privacy.min_cohort=3",
                *VOTE,
            ),
            "adds updates alone",
        ),
        (("privacy.mechanism=correlated", *VOTE), "one release"),
        ((*VOTE, "example.epsilon=5.0", "example.delta=1e-5"), "held-out records"),
        ((*VOTE, "data.holdout=0"), "nothing to vote by"),
        ((*STOPPING, "stopping.on=vote"), "needs it"),
        (("stopping.on=public",), "nothing to decide"),
        ((*PUBLIC, "stopping.every=3"), "nobody would look"),
        ((*PUBLIC, "aggregation.policy=fedavg", "aggregation.share=A"), "without a client's own B"),
    ],
)
def test_what_is_unsound_or_says_nothing_is_refused(settings: tuple[str, ...], reason: str) -> None:
    with pytest.raises((ConfigError, ConflictingSettings), match=reason):
        resolve(TABLES, settings, source="test")
