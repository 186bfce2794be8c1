"""From made-up runs to rows, pages and plots; every number here is invented."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from simulations.studies.catalog import studies, study
from simulations.studies.late_or_early import third
from simulations.studies.markdown import about, cells, table
from simulations.studies.numbers import Estimate
from simulations.studies.protocol import Column, Row
from simulations.studies.tables import rows_by_arm
from simulations.svg import as_file


def invented(arm: str, seed: int, bits: float | None, canaries: Any = ()) -> dict[str, Any]:
    kind = {"exposure_bits": bits, "exposure_bits_held_out": 1.4, "auc": 0.5, "extracted": 0.0}
    return {
        "arm": arm,
        "seed": seed,
        "rounds": 9,
        "base_parameters": 1000 * (seed + len(arm)),
        "trainable_parameters": 100,
        "loss_before": 6.0,
        "loss_after": 4.0 + 0.1 * seed,
        "epsilon": 8.0,
        "epsilon_applicable": 11.0,
        "noise_multiplier": 0.7,
        "epsilon_lower_bound": 0.2,
        "epsilon_ceiling": 1.5,
        "kinds": {"secret": kind},
        "canaries": list(canaries),
    }


def test_a_row_summarises_the_runs_of_its_arm_alone() -> None:
    arms = study("targets").arms(False)
    runs = [invented("attention", 1, 2.0), invented("attention", 2, 4.0), invented("mlp", 1, None)]
    rows = rows_by_arm(arms, runs)
    assert [row.name for row in rows] == ["attention", "mlp", "both"]
    assert rows[0].estimates["secret_bits"] == Estimate(mean=3.0, sd=math.sqrt(2), n=2)
    assert rows[1].mean("secret_bits") is None
    assert rows[1].mean("loss_after") == pytest.approx(4.1)
    # Rare tokens were not planted, and nothing at all was run of the last arm.
    assert rows[0].mean("token_auc") is None
    assert rows[2].estimates["loss_after"].n == 0


@pytest.mark.parametrize("rounds", [3, 6, 10, 15, 20])
def test_thirds_are_as_equal_as_they_can_be(rounds: int) -> None:
    found = [third(number, rounds) for number in range(1, rounds + 1)]
    assert found == sorted(found)
    counts = [found.count(place) for place in range(3)]
    assert sum(counts) == rounds
    assert max(counts) - min(counts) <= 1


def test_canaries_are_grouped_by_the_last_round_of_their_client() -> None:
    canaries = [
        {"bits": 1.0, "gain": 0.1, "rounds": []},
        {"bits": 2.0, "gain": 0.2, "rounds": [3]},
        {"bits": 3.0, "gain": 0.3, "rounds": [1, 4]},
        {"bits": 5.0, "gain": 0.5, "rounds": [6]},
        {"bits": 9.0, "gain": 0.9, "rounds": [7]},
        {"bits": 4.0, "gain": 0.4, "rounds": [1, 2, 9]},
    ]
    item = study("late-or-early")
    rows = {r.name: r for r in item.rows(item.arms(False), [invented("all", 7, 1.0, canaries)])}
    assert list(rows) == ["never", "first", "middle", "last", "all"]
    assert {name: row.mean("bits") for name, row in rows.items()} == {
        "never": 1.0,
        "first": 2.0,
        "middle": 4.0,
        "last": 6.5,
        "all": pytest.approx(23 / 5),
    }
    assert {name: row.mean("once_bits") for name, row in rows.items()} == {
        "never": None,
        "first": 2.0,
        "middle": 5.0,
        "last": 9.0,
        "all": pytest.approx(16 / 3),
    }
    assert [rows[name].mean("count") for name in rows] == [1, 1, 2, 2, 5]
    assert rows["last"].mean("times") == 2.0
    # Last rounds 3 4 6 7 9 against bits 2 3 5 9 4: ranks 1 2 3 4 5 and 1 2 4 5 3.
    assert rows["all"].mean("correlation") == pytest.approx(1 - 6 * 6 / (5 * 24))
    assert rows["all"].mean("once_correlation") == pytest.approx(1.0)


def test_a_table_says_over_how_many_seeds_where_they_are_fewer() -> None:
    columns = (Column(key="a", title="a|b", digits=1), Column(key="c", title="c"))
    rows = [
        Row(
            name="x",
            label="first",
            estimates={"a": Estimate.of([1.0, 2.0, 3.0]), "c": Estimate.of([1.0, None, 2.0])},
        ),
        Row(name="y", label="second", estimates={}),
    ]
    assert cells(rows[0], columns, most=3) == ["2.0 ± 1.0", "1.50 ± 0.71 [2]"]
    assert table(rows, columns) == [
        "|  | a/b | c |",
        "| --- | --- | --- |",
        "| first | 2.0 ± 1.0 | 1.50 ± 0.71 [2] |",
        "| second | - | - |",
    ]
    assert "over 3 seeds" in about(3, quick=False)
    assert "show nothing" in about(1, quick=True)


@pytest.mark.parametrize("missing", [False, True])
def test_every_plot_is_a_picture_with_a_title_even_where_numbers_are_missing(missing: bool) -> None:
    canaries = [{"bits": 2.0, "gain": 1.0, "rounds": [2]}, {"bits": 1, "gain": 0, "rounds": []}]
    for item in studies():
        arms = item.arms(True)
        runs = [
            invented(arm.name, seed, None if missing else 2.0 + seed, () if missing else canaries)
            for arm in arms
            for seed in (1, 2)
        ]
        for element in item.draw(item.rows(arms, runs), runs).values():
            root = ElementTree.fromstring(as_file(element, title="a < b"))  # noqa: S314 - our own
            title = root.find("{http://www.w3.org/2000/svg}title")
            assert title is not None
            assert title.text == "a < b"
            assert "aria-hidden" not in root.attrib
