"""The benchmark of stragglers: its cases, its goals by hand, and a quick run."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import InvalidValue, RunFolderExists
from simulations.benchmarks import stragglers
from simulations.benchmarks.protocol import Asked
from simulations.benchmarks.stragglers_runs import (
    BUFFERED,
    OVER,
    SYNCHRONOUS,
    Race,
    cases,
    goals,
    reached,
    table,
)


def race(arm: str, losses: tuple[float, ...], *, seed: int = 7, pace: float = 1.0) -> Race:
    return Race(
        arm=arm,
        seed=seed,
        before=4.0,
        times=tuple(pace * (i + 1) for i in range(len(losses))),
        losses=losses,
        counted=tuple(20 * (i + 1) for i in range(len(losses))),
        asked=99,
    )


def test_the_goal_is_nine_tenths_of_what_waiting_gains() -> None:
    """From 4.0 to 3.0 the goal is 3.1: the third measurement of one, the second of the other."""
    waiting = race(SYNCHRONOUS, (3.6, 3.2, 3.1, 3.0), pace=2.0)
    buffered = race(BUFFERED, (3.5, 3.05))
    assert goals([waiting, buffered]) == {7: pytest.approx(3.1)}
    assert reached(waiting, 3.1) == 2
    assert reached(buffered, 3.0) is None
    assert reached(buffered, None) is None
    rows = table([waiting, buffered, race(BUFFERED, (3.9, 3.8), seed=8)])
    found = [(row["arm"], row["hours to goal"], row["answers to goal"]) for row in rows]
    assert found == [
        (SYNCHRONOUS, 6.0, 60),
        (BUFFERED, 2.0, 40),
        (BUFFERED, None, None),
        (BUFFERED, None, None),
    ]
    assert rows[3]["seed"] == "median"
    assert rows[3]["loss"] == pytest.approx((3.05 + 3.8) / 2)


def test_words_choose_arms_and_seeds() -> None:
    assert len(cases((), quick=False)) == 9
    chosen = cases((OVER, "seed=8"), quick=False)
    assert [case.name for case in chosen] == ["over-selected-seed-8"]
    buffered = cases((BUFFERED,), quick=False)[0].resolved.config
    waiting = cases((SYNCHRONOUS,), quick=False)[0].resolved.config
    counted = (buffered.buffer.size or 0) * buffered.run.rounds
    assert counted == (waiting.clients.cohort or 0) * waiting.run.rounds
    assert buffered.clock == waiting.clock
    with pytest.raises(InvalidValue):
        cases(("slow",), quick=False)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_quick_run_measures_all_three_and_goes_on(tmp_path: Path) -> None:
    result = stragglers.run(quick=True, asked=Asked(folder=tmp_path / "runs"))
    rows = {row["arm"]: row for row in result.rows}
    assert list(rows) == [SYNCHRONOUS, OVER, BUFFERED]
    assert all(float(str(row["hours"])) > 0 for row in rows.values())
    assert rows[BUFFERED]["answers counted"] == 24
    stragglers.plot(result, tmp_path / "races.svg")
    drawn = (tmp_path / "races.svg").read_text(encoding="utf-8")
    assert "simulated hours" in drawn
    assert "buffered" in drawn
    with pytest.raises(RunFolderExists):
        stragglers.run(quick=True, asked=Asked(folder=tmp_path / "runs"))
    again = stragglers.run(quick=True, asked=Asked(folder=tmp_path / "runs", resume=True))
    assert again.rows == result.rows
