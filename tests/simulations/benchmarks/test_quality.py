"""The benchmark of quality: its cases, its fronts, and that its numbers are the run folders'."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.configtypes import Section
from shared.errors import DataFileNotFound, InvalidValue, RunFolderError, RunFolderExists
from simulations.benchmarks import quality, quality_arms
from simulations.benchmarks.protocol import Asked, BenchResult, Scalar
from simulations.benchmarks.quality_arms import Case, axes_of, cases, choices, require_files
from simulations.benchmarks.quality_rows import COSTS, Row, front, number, table
from simulations.benchmarks.quality_runs import Measured
from simulations.benchmarks.quality_select import selected

AXES = {"scenario": ("a", "b"), "policy": ("ffa", "fedavg"), "epsilon": ("1", "8"), "seed": ("8",)}
NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf])


def beaten(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return other[0] <= one[0] and other[1] <= one[1] and other != one


def measured(case: Case, *, loss: float, seconds: float = 1.0, moved: float = 10.0) -> Measured:
    private = case.epsilon is not None
    return Measured(
        case=case,
        mode="example" if private else "none",
        epsilon=case.epsilon,
        delta=1e-4 if private else None,
        unit="example" if private else None,
        relation="add-or-remove-one" if private else None,
        cap=case.epsilon,
        releases=3,
        loss_before=5.0,
        loss=loss,
        up=7,
        down=8,
        moved=moved,
        seconds=seconds,
    )


class TestSelection:
    def test_no_word_leaves_everything(self) -> None:
        assert selected(AXES, []) == AXES

    def test_words_of_one_axis_add_up_and_of_several_narrow(self) -> None:
        found = selected(AXES, ["fedavg", "ffa", "b", "epsilon=8"])
        assert found == {**AXES, "scenario": ("b",), "epsilon": ("8",)}

    def test_a_word_of_two_axes_is_asked_back(self) -> None:
        with pytest.raises(InvalidValue, match="several axes: epsilon, seed") as caught:
            selected(AXES, ["8"])
        assert "--only epsilon=8 or --only seed=8" in caught.value.hint

    @pytest.mark.parametrize(
        ("wrong", "near"),
        [("fedavgg", "'fedavg'"), ("policy=fedavgg", "'policy=fedavg'"), ("seed=a", "'seed=8'")],
    )
    def test_an_unknown_word_gets_the_nearest(self, wrong: str, near: str) -> None:
        with pytest.raises(InvalidValue, match="expected one of: scenario=a, ") as caught:
            selected(AXES, [wrong])
        assert near in caught.value.hint


class TestCases:
    def test_every_policy_at_every_epsilon_and_without_three_times(self) -> None:
        found = cases([], quick=False)
        axes = axes_of(quick=False)
        optional = ("link", "share", "server")
        assert [*axes] == ["scenario", *choices(), *optional, "epsilon", "seed"]
        # Of these the usual value is measured, unless others are named.
        lengths = [len(values) for axis, values in axes.items() if axis not in optional]
        assert len(found) == math.prod(lengths)
        assert not any("link" in case.choices or "share" in case.choices for case in found)
        assert len({case.name for case in found}) == len(found)
        assert {case.scenario for case in found} == {"quickstart", "shakespeare", "medquad"}
        assert {case.choices["policy"] for case in found} >= {"ffa", "fedavg"}
        assert {case.epsilon for case in found} == {1.0, 3.0, 8.0, None}
        assert {case.seed for case in found} == {7, 8, 9}
        assert [case.seed for case in found] == sorted(case.seed for case in found)

    def test_a_case_differs_from_its_scenario_in_what_it_says_alone(self) -> None:
        for case in cases(["seed=8"], quick=False):
            resolved = case.resolved
            if case.resolved is None:
                assert case.refusal
                assert case.choices["policy"] in {"flexlora", "fedex"}
                continue
            assert resolved is not None
            said = {key for key, origin in resolved.origins.items() if origin == "--set"}
            told = "privacy.mode" if case.epsilon is None else "privacy.epsilon"
            about = {"run.seed", "aggregation.policy", told}
            if case.choices["policy"] in {"flexlora", "fedex"}:
                # Adam, which these scenarios ask for, has no meaning on factors of a mean product.
                about |= {"server.optimizer", "server.learning_rate", "server.schedule"}
            assert said == about | {"evaluation.every"} | set(quality_arms.PLAIN)
            assert resolved.config.policy == case.choices["policy"]
            assert resolved.config.evaluation.every == resolved.config.run.rounds
            assert (resolved.config.privacy.mode == "none") == (case.epsilon is None)

    def test_words_choose(self) -> None:
        found = cases(["medquad", "policy=ffa", "epsilon=none", "seed=9"], quick=False)
        assert [case.name for case in found] == ["medquad-ffa-epsilon-none-seed-9"]
        assert str(found[0]) == "medquad, ffa, not private, seed 9"
        with pytest.raises(InvalidValue):
            cases(["shakespeare"], quick=True)

    def test_a_code_of_updates_is_measured_where_it_is_named(self) -> None:
        said = ["shakespeare", "policy=ffa", "epsilon=8", "seed=7"]
        for word in ("topk", "link=topk"):
            (case,) = cases([*said, word], quick=False)
            assert case.name == "shakespeare-ffa-topk-epsilon-8-seed-7"
            assert case.resolved is not None
            assert case.resolved.config.link.up == "topk"
        both = cases([*said, "fp32", "int4"], quick=False)
        assert [case.choices.get("link") for case in both] == [None, "int4"]
        assert both[0].name == cases(said, quick=False)[0].name

    def test_plain_means_for_every_policy_make_them_comparable(self) -> None:
        said = ["shakespeare", "policy=ffa", "policy=flexlora", "epsilon=none", "seed=7"]
        found = cases([*said, "server=mean"], quick=False)
        assert [case.choices["server"] for case in found] == ["mean", "mean"]
        for case in found:
            assert case.resolved is not None
            assert case.resolved.config.server.optimizer == "mean"
        # A policy that has nothing but means is measured once, whatever is named.
        assert len(cases([*said, "server=mean", "server=scenario"], quick=False)) == 3

    def test_what_clients_share_is_an_axis(self) -> None:
        said = ["shakespeare", "policy=fedavg", "epsilon=8", "seed=7", "share=A"]
        (case,) = cases(said, quick=False)
        assert case.name == "shakespeare-fedavg-A-epsilon-8-seed-7"
        assert case.resolved is not None
        assert case.resolved.config.policy_facts.kept == "B"

    def test_a_new_codec_is_an_axis_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Longer(Section):
            policy: Literal["ffa", "fedavg", "flexlora"] | None = None
            codec: Literal["float32", "int8"] = "float32"
            strict: bool = True

        monkeypatch.setattr(quality_arms, "AggregationSection", Longer)
        assert choices() == {
            "policy": ("ffa", "fedavg", "flexlora"),
            "codec": ("float32", "int8"),
        }

    def test_what_the_rules_refuse_is_named_and_left_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # client_canaries is refused beside mode example: a rule that stands for those to come.
        monkeypatch.setattr(
            quality_arms, "PLAIN", {**quality_arms.PLAIN, "audit.client_canaries": 1}
        )
        found = cases(["shakespeare", "ffa", "seed=7"], quick=False)
        refused = [case for case in found if case.resolved is None]
        assert [case.epsilon for case in refused] == [1.0, 3.0, 8.0]
        assert all("mode example protects single examples" in case.refusal for case in refused)
        rows = table([], refused)
        assert [row["epsilon"] for row in rows] == [1.0, 3.0, 8.0]
        assert all(row["refused"] and "loss" not in row for row in rows)

    def test_missing_files_are_all_named_before_anything_runs(self, tmp_path: Path) -> None:
        wanted = cases(["shakespeare", "quickstart", "medquad", "seed=7"], quick=False)
        with pytest.raises(DataFileNotFound) as caught:
            require_files(wanted, base_dir=tmp_path)
        for path in ("shakespeare/by_role.jsonl", "medquad/medquad_small.jsonl", "stories260K"):
            assert path in caught.value.message
        assert "quickstart:" not in caught.value.message
        assert "--only quickstart" in caught.value.hint
        require_files([case for case in wanted if case.scenario == "quickstart"], base_dir=tmp_path)

    def test_the_data_of_a_scenario_that_is_there_is_found(self, tmp_path: Path) -> None:
        wanted = cases(["medquad", "shakespeare", "seed=7"], quick=False)
        home = tmp_path / "here"
        home.mkdir()
        shared = tmp_path / "shared" / "data"
        (shared / "models" / "stories260K").mkdir(parents=True)
        (shared / "federated" / "medquad").mkdir(parents=True)
        (shared / "federated" / "medquad" / "medquad_small.jsonl").write_text("")
        with pytest.raises(DataFileNotFound, match="shakespeare: ") as caught:
            require_files(wanted, base_dir=home)
        assert "medquad" not in caught.value.message
        assert "--only medquad" in caught.value.hint


class TestFront:
    @given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
    def test_is_what_brute_force_finds(self, points: Sequence[tuple[float, float]]) -> None:
        expected = [not any(beaten(one, other) for other in points) for one in points]
        assert front(points) == expected

    def test_what_is_not_a_number_is_on_none(self) -> None:
        points = [(math.nan, 0.0), (1.0, 2.0), (2.0, math.nan), (2.0, 1.0)]
        assert front(points) == [False, True, False, True]

    def test_bytes_are_compared_at_the_same_epsilon_alone(self) -> None:
        found = [
            measured(case, loss=4.0, moved=20.0 + number(case.epsilon or 0.0))
            for case in cases(["medquad", "ffa", "seed=7"], quick=False)
        ]
        rows = table(found, ())
        assert [row["epsilon"] for row in rows] == [1.0, 3.0, 8.0, None]
        assert all(row["front_bytes"] for row in rows)
        assert [row["front_epsilon"] for row in rows] == [True, False, False, False]


class TestTable:
    def test_median_and_range_over_seeds(self) -> None:
        wanted = cases(["medquad", "ffa", "epsilon=8"], quick=False)
        losses = {7: 3.0, 8: 2.0, 9: 7.0}
        (row,) = table([measured(case, loss=losses[case.seed]) for case in wanted], ())
        assert (row["loss"], row["loss_min"], row["loss_max"]) == (3.0, 2.0, 7.0)
        assert (row["seeds"], row["epsilon_spent"], row["releases"]) == (3, 8.0, 3)
        assert [row[key] for key in ("delta", "unit", "relation")] == [
            1e-4,
            "example",
            "add-or-remove-one",
        ]


def brute_force(rows: Sequence[Row], cost: str) -> list[bool]:
    """Say of each row whether no other of its scenario and, but for epsilon, epsilon beats it."""

    def rivals(row: Row) -> list[Row]:
        same = [other for other in rows if other["scenario"] == row["scenario"]]
        return [o for o in same if cost == "epsilon" or o["epsilon"] == row["epsilon"]]

    def point(row: Row) -> tuple[float, float]:
        return number(row["loss"]), number(row[cost])

    return [not any(beaten(point(row), point(other)) for other in rivals(row)) for row in rows]


def folders(home: Path, row: Row) -> list[Path]:
    words = "none" if row["epsilon"] is None else f"{number(row['epsilon']):g}"
    found = home.glob(f"{row['scenario']}-{row['policy']}-epsilon-{words}-seed-*")
    return sorted(path for path in found if path.is_dir())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def clocked(folder: Path) -> list[dict[str, Any]]:
    text = folder.with_name(f"{folder.name}.seconds.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# Two policies are enough to see a front; the others cost as many runs again.
PAIR = ("policy=ffa", "policy=fedavg")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quality") / "runs"


@pytest.fixture(scope="module")
def found(home: Path) -> BenchResult:
    return quality.run(quick=True, asked=Asked(folder=home, only=PAIR))


@pytest.mark.slow
class TestQuickRun:
    def test_has_a_row_for_every_arm(self, found: BenchResult) -> None:
        arms = [(row["policy"], row["epsilon"]) for row in found.rows]
        assert arms == list(itertools.product(("ffa", "fedavg"), (8.0, None)))
        assert {row["scenario"] for row in found.rows} == {"quickstart"}
        assert {row["seeds"] for row in found.rows} == {2}
        assert found.parameters["runs"] == 8
        json.dumps(found.to_dict(), allow_nan=False)

    def test_spends_no_more_than_the_cap(self, found: BenchResult, home: Path) -> None:
        assert found.passed
        assert [check.limit for check in found.checks] == [1.0]
        for row in found.rows:
            spent: list[float] = []
            for folder in folders(home, dict(row)):
                last = lines(folder)[-1]
                if row["epsilon"] is None:
                    assert last["epsilon"] is None
                    continue
                assert last["epsilon"] <= last["cap"]
                assert last["epsilon"] <= number(row["epsilon"])
                spent.append(last["epsilon"])
            assert row["epsilon_spent"] == (max(spent) if spent else None)

    def test_has_the_numbers_of_the_run_folders(self, found: BenchResult, home: Path) -> None:
        for row in found.rows:
            runs = folders(home, dict(row))
            assert len(runs) == 2
            rounds = [record for run in runs for record in lines(run)]
            assert row["up_bytes"] == max(record["bytes_up_per_client"] for record in rounds)
            assert row["down_bytes"] == max(record["bytes_down_per_client"] for record in rounds)
            summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
            losses = [summary["loss_after"] for summary in summaries]
            assert row["loss"] == statistics.median(losses)
            assert [row["loss_min"], row["loss_max"]] == sorted(losses)
            seconds = [sum(record["seconds"] for record in clocked(run)) for run in runs]
            assert row["seconds"] == statistics.median(seconds)
            # One process on one thread has no more of the processor than there is time.
            for run in runs:
                for timed, record in zip(clocked(run), lines(run), strict=True):
                    assert timed["round"] == record["round"]
                    assert 0 < timed["seconds"] <= record["seconds"] + 0.02
            moved = [
                sum(
                    (record["bytes_up_per_client"] + record["bytes_down_per_client"])
                    * record["answered"]
                    for record in lines(run)
                )
                / 24
                for run in runs
            ]
            assert row["bytes"] == statistics.median(moved)

    def test_marks_the_fronts_that_brute_force_finds(self, found: BenchResult) -> None:
        rows = [dict(row) for row in found.rows]
        for cost in COSTS:
            marks: list[Scalar] = [row[f"front_{cost}"] for row in rows]
            assert marks == brute_force(rows, cost)
            assert True in marks

    def test_goes_on_where_it_was_and_only_if_told(self, found: BenchResult, home: Path) -> None:
        with pytest.raises(RunFolderExists, match="holds runs"):
            quality.run(quick=True, asked=Asked(folder=home, only=PAIR))
        again = quality.run(quick=True, asked=Asked(folder=home, resume=True, only=PAIR))
        assert again.rows == found.rows
        assert again.parameters["of them kept from before"] == 8
        few = quality.run(quick=True, asked=Asked(folder=home, resume=True, only=("ffa", "seed=7")))
        assert [row["policy"] for row in few.rows] == ["ffa", "ffa"]
        assert {row["seeds"] for row in few.rows} == {1}

    def test_does_not_make_up_the_time_of_a_round(
        self, found: BenchResult, home: Path, tmp_path: Path
    ) -> None:
        copy = shutil.copytree(home, tmp_path / "runs")
        (clock, *_) = sorted(copy.glob("*.seconds.jsonl"))
        clock.write_text(clock.read_text(encoding="utf-8").splitlines()[0] + "\n")
        with pytest.raises(RunFolderError, match="time of 1 rounds, expected 2"):
            quality.run(quick=True, asked=Asked(folder=copy, resume=True, only=PAIR))

    def test_draws(self, found: BenchResult, tmp_path: Path) -> None:
        quality.plot(found, tmp_path / "quality.svg")
        text = (tmp_path / "quality.svg").read_text(encoding="utf-8")
        assert text.startswith("<svg ")
        for word in ("ffa", "fedavg", "quickstart", "epsilon for one client at delta 0.0005"):
            assert word in text
