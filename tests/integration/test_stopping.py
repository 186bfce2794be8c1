"""A run that stops by itself, and one that may not look."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.configfile import resolve
from shared.errors import ConfigError
from tests.integration.scenario import TABLES, run_small
from tests.integration.test_modes import _stop_after_first_round
from tests.integration.test_schedules import SMALL, same

STOPPING = ("stopping.patience=1", "stopping.min_improvement=100.0")


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
