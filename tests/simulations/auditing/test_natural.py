"""The clients' own records as two sides, each text once and on one side only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from client.adapter import adapt
from client.data import ClientData, Record
from client.model import load_base
from simulations.assemble import ASSETS
from simulations.auditing.natural import natural_split
from simulations.auditing.target import ModelTarget


@dataclass(frozen=True)
class Clients:
    """A dataset of given records: training records and held-out ones by client."""

    records: tuple[tuple[list[Record], list[Record]], ...]

    @property
    def population(self) -> int:
        return len(self.records)

    def client(self, index: int) -> ClientData:
        train, holdout = self.records[index]
        return ClientData(name=str(index), train=train, holdout=holdout)

    def describe(self) -> Mapping[str, object]:
        return {}


def of_texts(*texts: str) -> list[Record]:
    return [Record(text=text) for text in texts]


@pytest.fixture(scope="module")
def target() -> ModelTarget:
    base = load_base(str(ASSETS / "demo"))
    model = adapt(base, r=2, alpha=4, target_modules=["q_proj"])
    return ModelTarget(model, max_length=16)


CLIENTS = Clients(
    (
        (of_texts("one", "two", "shared", "two "), of_texts("three", " ")),
        (of_texts("four", "one"), of_texts("shared", "five", "three")),
        (
            [Record(prompt="ask", response="six"), Record(prompt="long " * 40, response="cut")],
            of_texts("seven"),
        ),
    )
)


def test_each_text_is_on_one_side_once(target: ModelTarget) -> None:
    split = natural_split(CLIENTS, target, seed=0, most=100)
    assert split is not None
    assert sorted(p.text for p in split.members) == ["four", "one", "six", "two"]
    assert sorted(p.text for p in split.nonmembers) == ["five", "seven", "three"]
    assert {p.prompt for p in split.members} == {"", "ask"}
    assert split.by_chance


def test_only_participants_count(target: ModelTarget) -> None:
    split = natural_split(CLIENTS, target, seed=0, most=100, participants=[1, 1])
    assert split is not None
    assert sorted(p.text for p in split.members) == ["four", "one"]
    assert sorted(p.text for p in split.nonmembers) == ["five", "shared", "three"]


def test_no_more_than_wanted_and_the_same_again(target: ModelTarget) -> None:
    splits = [natural_split(CLIENTS, target, seed=seed, most=2) for seed in (0, 0)]
    assert splits[0] == splits[1]
    assert splits[0] is not None
    assert (len(splits[0].members), len(splits[0].nonmembers)) == (2, 2)


def test_without_a_hold_out_there_is_no_split(target: ModelTarget) -> None:
    nothing = Clients(((of_texts("one"), []),))
    assert natural_split(nothing, target, seed=0, most=10) is None
