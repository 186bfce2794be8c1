from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import InvalidValue
from shared.privacy.ledger import Ledger
from simulations.benchmarks import ledger
from simulations.benchmarks.protocol import Benchmark
from tests.ledgers import PLAN, reserve


@pytest.mark.slow
def test_a_quick_run_measures_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ledger.POSTGRES, raising=False)
    module: Benchmark = ledger
    result = module.run(quick=True)
    assert result.name == "ledger"
    assert result.parameters["stores"] == "sqlite"
    assert len({row["case"] for row in result.rows}) == len(result.rows) == 9
    assert all(0.0 < float(str(row["mean_s"])) <= float(str(row["max_s"])) for row in result.rows)
    assert [check.name for check in result.checks] == [
        "sqlite: charge of 100 clients",
        "sqlite: status of one of 2000 subjects",
        "sqlite: charge of one subject over 200 rounds",
        "sqlite: charge of one subject beyond 200 rounds",
        "sqlite: status after 200 rounds",
    ]


def test_a_promise_is_held_to_95_of_100_times() -> None:
    assert ledger._most([float(n) for n in range(100, 0, -1)]) == 95.0
    assert ledger._most([3.0]) == 3.0
    assert ledger._most([float(n) for n in range(1, 21)]) == 19.0


@pytest.mark.slow
def test_a_ledger_in_use_is_not_filled_with_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any ledger that is not empty will do; here it is a file."""
    where = str(tmp_path / "ledger.sqlite")
    with Ledger(where) as used:
        used.register_plan("run", PLAN, "corpus")
        reserve(used, 1)
    monkeypatch.setenv(ledger.POSTGRES, where)
    with pytest.raises(InvalidValue, match="not empty"):
        ledger.run(quick=True)


@pytest.mark.slow
def test_a_hundred_thousand_subjects_keep_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 clients charged in under 1 s, one asked for in 50 ms, 10,000 rounds at 0.1 s each."""
    monkeypatch.delenv(ledger.POSTGRES, raising=False)
    result = ledger.run(quick=False)
    assert [check for check in result.checks if not check.passed] == []
