from __future__ import annotations

import pytest

from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from simulations.benchmarks import accountant
from simulations.benchmarks.protocol import Benchmark


@pytest.mark.slow
def test_a_quick_run_measures_every_case() -> None:
    module: Benchmark = accountant
    result = module.run(quick=True)
    assert result.name == "accountant"
    assert result.parameters["quick"] is True
    cases = {str(row["case"]) for row in result.rows}
    assert len(cases) == 7
    assert all(float(str(row["epsilon"])) > 0 for row in result.rows)
    assert len(result.checks) == 12


def test_kinds_are_distinct_and_add_up() -> None:
    events = accountant._gaussians(20, 0)
    assert len(set(events)) == 20
    assert not set(events) & set(accountant._gaussians(20, 1))
    assert len(set(accountant._skellams(20))) == 20
    one = [e for e in events if isinstance(e, GaussianEvent)]
    cheap = epsilon_of(*one[:2], delta=1e-6, relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    assert cheap < epsilon_of(*one[:3], delta=1e-6, relation=NeighboringRelation.ADD_OR_REMOVE_ONE)


@pytest.mark.slow
def test_ten_thousand_rounds_keep_every_promise() -> None:
    """First answer under 10 s of CPU, one per round under 0.1 s, cost linear in kinds."""
    result = accountant.run(quick=False)
    assert [check for check in result.checks if not check.passed] == []
