"""The budget of a run: which of several subjects its figure is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.budget import RunBudget
from shared.privacy.ledger import Ledger
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.vote import VoteTerms

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


def test_the_bound_is_that_of_all_planned_rounds_beside_what_others_charged(
    tmp_path: Path,
) -> None:
    """Whatever a run was charged so far; rounds that were repeated beyond its plan come on top."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        alone = _budget(ledger, "alone", 2.0)
        whole = _plan(2.0).epsilon()
        assert alone.bound() == whole
        alone.commit(alone.reserve(1, [0, 1]))
        assert alone.spent().epsilon < alone.bound() == pytest.approx(whole)
        again = _budget(ledger, "again", 2.0)
        for server_round in range(1, 21):
            again.commit(again.reserve(server_round, [0]))
        assert ledger.spent("client-0", SCOPE).releases == 21
        assert again.bound() > again.spent().epsilon > whole
        other = _budget(ledger, "other", 4.0)
        other.commit(other.reserve(1, [1]))
        bound = ledger.bound("client-1", SCOPE, _plan(4.0))
        assert bound.releases == 1 + 20
        assert bound.epsilon > _plan(4.0).epsilon()
        assert ledger.bound("client-9", SCOPE, _plan(4.0)).epsilon == _plan(4.0).epsilon()
    nobody = make_plan(mode="none", rounds=2, population=3)
    with Ledger(tmp_path / "none.sqlite") as ledger:
        assert RunBudget(ledger, plan=nobody, run_id="run", scope=SCOPE).bound() == float("inf")


def test_the_bound_of_a_population_counts_votes(tmp_path: Path) -> None:
    plan = make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-4,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        sampling_probability=0.5,
        rounds=6,
        population=10,
        vote=VoteTerms(every=2, noise_multiplier=1.0),
    )
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        budget = RunBudget(ledger, plan=plan, run_id="run", scope=SCOPE)
        for server_round in (1, 2, 3):
            budget.commit(budget.reserve(server_round, [0]))
        kinds = {charge.server_round: charge.event for charge in ledger.charges(SCOPE)}
        assert kinds[1] == kinds[2] != kinds[3]
        assert budget.spent().epsilon < budget.bound() == pytest.approx(plan.epsilon())
        ledger.verify()
