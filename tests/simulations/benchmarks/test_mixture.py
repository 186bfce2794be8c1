"""The benchmark of mixtures: its table by hand, its words, and a quick run."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import DataFileNotFound, InvalidValue, RunFolderExists
from simulations.benchmarks import mixture
from simulations.benchmarks.mixture_runs import Outcome, arms_of, measure, table
from simulations.benchmarks.protocol import Asked


def outcome(rate: float, seed: int, medical: float, play: float) -> Outcome:
    losses = {"medical": [medical] * 10, "play": [play] * 10}
    return Outcome(arm="one", seed=seed, rate=rate, losses=losses, parameters=7, bits=None)


def test_the_better_rate_is_taken_for_all_seeds_together() -> None:
    """Rate 2 is better on one seed and worse by the mean: (2 + 3) / 2 against (1.5 + 4) / 2."""
    found = [
        outcome(1.0, 1, 1.0, 3.0),
        outcome(1.0, 2, 2.0, 4.0),
        outcome(2.0, 1, 1.0, 2.0),
        outcome(2.0, 2, 3.0, 5.0),
    ]
    (row,) = table(found)
    assert (row["rate"], row["loss"], row["lowest"], row["highest"]) == (1.0, 2.5, 2.0, 3.0)
    assert (row["medical"], row["play"], row["worst tenth"]) == (1.5, 3.5, 3.5)
    assert row["bits"] is None


def test_words_are_arms() -> None:
    assert arms_of(("mixture",)) == ("mixture",)
    assert len(arms_of(())) == 4
    with pytest.raises(InvalidValue, match="arm"):
        arms_of(("two",))


def test_texts_that_are_not_there_and_runs_that_are_are_said(tmp_path: Path) -> None:
    asked = Asked(folder=tmp_path / "runs")
    with pytest.raises(DataFileNotFound):
        measure(("one",), asked, quick=False, base_dir=tmp_path)
    (tmp_path / "runs" / "one").mkdir()
    with pytest.raises(RunFolderExists):
        mixture.run(quick=True, asked=asked)


@pytest.mark.slow
def test_a_quick_run_measures_both_kinds_and_goes_on(tmp_path: Path) -> None:
    only = ("mixture", "apart")
    result = mixture.run(quick=True, asked=Asked(folder=tmp_path / "runs", only=only))
    rows = {row["arm"]: row for row in result.rows}
    assert rows["mixture"]["bits"] is not None
    assert rows["apart"]["bits"] is None
    for row in rows.values():
        assert row["medical"] != row["play"]
    again = mixture.run(quick=True, asked=Asked(folder=tmp_path / "runs", only=only, resume=True))
    assert again.rows == result.rows
