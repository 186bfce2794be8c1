"""The budget of a run: which of several subjects its figure is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.budget import RunBudget
from shared.privacy.ledger import Ledger
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan

SCOPE = "notes"


def _plan(noise_multiplier: float) -> PrivacyPlan:
    return make_plan(
        mode="example",
        unit="example",
        neighboring_relation="add-or-remove-one",
        delta=1e-5,
        noise_multiplier=noise_multiplier,
        max_grad_norm=1.0,
        sampling_probability=0.1,
        rounds=20,
        releases_per_round=1,
        dataset_size=400,
        population=10,
        cap=200.0,
    )


def _budget(ledger: Ledger, run_id: str, noise_multiplier: float) -> RunBudget:
    return RunBudget(ledger, plan=_plan(noise_multiplier), run_id=run_id, scope=SCOPE)


def test_fewer_releases_of_another_plan_may_have_cost_more(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        loud = _budget(ledger, "loud", 0.5)
        loud.commit(loud.reserve(1, [0]))
        quiet = _budget(ledger, "quiet", 4.0)
        for server_round in (1, 2, 3):
            quiet.commit(quiet.reserve(server_round, [1]))
        costly, cheap = (ledger.spent(f"client-{client}", SCOPE).epsilon for client in (0, 1))
        assert costly > cheap
        assert quiet.spent().epsilon == costly
        assert quiet.spent().releases == 1
        assert _budget(ledger, "quiet", 4.0).spent().epsilon == costly


def test_a_charge_moves_the_figure_of_a_shared_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = _budget(ledger, "first", 2.0)
        first.commit(first.reserve(1, [0]))
        second = _budget(ledger, "second", 1.0)
        before = second.spent().epsilon
        charge = second.reserve(1, [0])
        assert second.spent().epsilon > before
        second.abandon(charge)
        assert second.spent().epsilon == pytest.approx(before)
