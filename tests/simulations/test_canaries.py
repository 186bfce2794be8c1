"""Canaries: their coins, the one client of each, their texts, and what stays untouched."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from server.audit.target import Passage
from shared.errors import AuditError, InvalidValue
from simulations.canaries import (
    WithCanaries,
    included_records,
    plan_canaries,
    planted,
    references,
)
from simulations.canaryplan import KINDS, RARE_TOKEN, SECRET, Canary, CanaryPlan
from simulations.corpora import CANARY_WORDS
from simulations.dataset import ClinicsDataset

TOKENS = tuple(f"zq{number}" for number in range(60))


def dataset(population: int = 50) -> ClinicsDataset:
    return ClinicsDataset(population=population, seed=3, records=8, holdout=0.25)


def both(**settings: Any) -> CanaryPlan:
    """Return a plan with both kinds."""
    given: dict[str, Any] = {"count": 20, "population": 100, "seed": 1, "repeats": 2}
    return plan_canaries(**{**given, "kinds": KINDS, "tokens": TOKENS, **settings})


def passages(plan: CanaryPlan) -> set[Passage]:
    return {canary.passage for canary in plan.canaries}


def test_a_plan_repeats_and_depends_on_the_seed() -> None:
    plan = both()
    assert plan == both()
    assert not passages(plan) & passages(both(seed=2))
    assert [c.index for c in plan.canaries] == list(range(40))
    assert plan.kinds == (SECRET, RARE_TOKEN)


def test_each_kind_has_its_own_form_and_every_beginning_is_another() -> None:
    plan = both()
    secrets = [c.text for c in plan.canaries if c.kind == SECRET]
    tokens = [c.text for c in plan.canaries if c.kind == RARE_TOKEN]
    assert all(set(text.split()) <= set(CANARY_WORDS) for text in secrets)
    assert all(text.count(" ") == 4 and text[0] == " " for text in secrets)
    assert len(set(secrets)) == len(set(tokens)) == 20
    assert set(tokens) | set(plan.spare) == set(TOKENS)
    assert len({c.prompt for c in plan.canaries}) == 40
    assert all(len(c.prompt.split()) == 12 for c in plan.canaries)


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone(kind: str) -> None:
    plan = both(kinds=(kind,))
    assert plan.kinds == (kind,)
    assert len(plan.canaries) == 20


def test_every_canary_has_a_client_of_its_own_while_there_are_enough() -> None:
    plan = both(count=50)
    assert sorted(c.client for c in plan.canaries) == list(range(100))
    assert plan.per_client == 1


@pytest.mark.parametrize(("count", "most"), [(101, 2), (250, 3), (300, 3)])
def test_more_canaries_than_clients_are_spread_evenly(count: int, most: int) -> None:
    plan = plan_canaries(count=count, population=100, seed=1)
    loads = Counter(c.client for c in plan.canaries)
    assert len(plan.canaries) == count
    assert set(loads) == set(range(100))
    assert max(loads.values()) == plan.per_client == most
    assert min(loads.values()) >= most - 1


def test_clients_hold_canaries_of_both_kinds_when_there_are_more_canaries_than_clients() -> None:
    plan = both(population=30)
    assert plan.per_client == 2
    assert max(Counter(c.client for c in plan.canaries).values()) == 2


def test_no_canaries() -> None:
    plan = both(count=0, population=5)
    assert plan.canaries == ()
    assert plan.spare == ()
    assert plan.per_client == 1
    assert planted(plan).kinds == ()
    assert WithCanaries(dataset(), plan).client(3) == dataset().client(3)


@pytest.mark.statistical
def test_coins_are_fair_and_independent_of_client_and_kind() -> None:
    """False alarms: 1e-4 for each of three exact tests, had the seeds been fresh."""
    canaries = [c for s in range(20) for c in both(count=50, population=1000, seed=s).canaries]
    included = sum(c.included for c in canaries)
    assert stats.binomtest(included, len(canaries)).pvalue > 1e-4
    for one in (
        [c.included for c in canaries if c.client < 500],
        [c.included for c in canaries if c.kind == SECRET],
    ):
        rest = included - sum(one)
        table = [[sum(one), len(one) - sum(one)], [rest, len(canaries) - len(one) - rest]]
        assert stats.fisher_exact(table).pvalue > 1e-4
    assert len({sum(c.included for c in canaries[i : i + 100]) for i in range(0, 2000, 100)}) > 1, (
        "coins of their own, not a balanced draw"
    )


BAD: list[dict[str, Any]] = [
    {"count": -1}, {"count": True}, {"count": 1.5}, {"count": 10**12}, {"population": 0},
    {"repeats": 0}, {"seed": "x"}, {"kinds": ("secrets",)}, {"kinds": (SECRET, SECRET)},
    {"references": -1}, {"references": 10**12},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_plans_that_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        both(**{"count": 4, "population": 5, **bad})


def test_too_few_rare_tokens_are_refused_with_both_numbers() -> None:
    with pytest.raises(AuditError, match=r"audit\.canaries=61 .* has 60 tokens that are rare"):
        both(count=61)


def test_the_json_form_reads_back() -> None:
    plan = both(references=7)
    assert CanaryPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def _broken(key: str, value: object) -> dict[str, Any]:
    data: dict[str, Any] = plan_canaries(count=4, population=5, seed=1).to_json()
    if key in data:
        data[key] = value
    else:
        data["canaries"][0][key] = value
    return data


BROKEN: list[tuple[str, object]] = [
    ("seed", "1"), ("repeats", 0), ("repeats", True), ("canaries", 3), ("canaries", [{}]),
    ("client", -1), ("client", 1.0), ("included", 1), ("text", 3), ("prompt", None),
    ("kind", "other"), ("references", -1), ("spare", 3), ("spare", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BROKEN)
def test_a_malformed_json_form(key: str, value: object) -> None:
    with pytest.raises(AuditError, match="malformed"):
        CanaryPlan.from_json(_broken(key, value))


def test_equal_secrets_equal_beginnings_and_wrong_order_are_refused() -> None:
    one = Canary(index=0, kind=SECRET, prompt="a", text="x", client=0, included=True)
    twin, close = replace(one, index=1, prompt="b"), replace(one, index=1, text="y")
    for canaries in ((one, twin), (one, close), (replace(twin, text="z"),)):
        with pytest.raises(InvalidValue):
            CanaryPlan(seed=0, canaries=canaries, repeats=1)
    with pytest.raises(InvalidValue):
        CanaryPlan(seed=0, canaries=(one,), repeats=1, spare=("x",))


def test_references_are_fresh_and_of_the_same_form() -> None:
    plan = both(references=500)
    fresh = references(plan, SECRET)
    assert fresh == references(plan, SECRET)
    assert len({p.text for p in fresh}) == len({p.prompt for p in fresh}) == 500
    assert not {p.text for p in fresh} & {c.text for c in plan.canaries}
    assert not {p.prompt for p in fresh} & {c.prompt for c in plan.canaries}
    assert all(set(p.text.split()) <= set(CANARY_WORDS) for p in fresh)
    assert all(len(p.prompt.split()) == 12 for p in fresh)
    other = references(both(references=500, seed=2), SECRET)
    assert not set(fresh) & set(other)


def test_references_of_rare_tokens_are_what_is_left_of_them() -> None:
    plan = both(references=500)
    fresh = references(plan, RARE_TOKEN)
    assert tuple(p.text for p in fresh) == plan.spare
    assert len(references(both(references=5), RARE_TOKEN)) == 5


def test_references_step_over_the_canaries_of_the_plan() -> None:
    would_be = references(both(references=3), SECRET)
    canaries = tuple(
        Canary(index=i, kind=SECRET, prompt=p.prompt, text=p.text, client=i, included=False)
        for i, p in enumerate(would_be)
    )
    plan = CanaryPlan(seed=1, canaries=canaries, repeats=1, references=3)
    taken = {p.text for p in would_be} | {p.prompt for p in would_be}
    assert not taken & {part for p in references(plan, SECRET) for part in (p.text, p.prompt)}


def test_included_canaries_go_to_their_client_and_held_out_ones_nowhere() -> None:
    plain = dataset()
    plan = both(count=15, population=50, seed=4, repeats=3)
    with_canaries = WithCanaries(plain, plan)
    found: Counter[tuple[int, str | None, str | None]] = Counter()
    for index in range(50):
        before, after = plain.client(index), with_canaries.client(index)
        assert after.name == before.name
        assert after.holdout == before.holdout
        assert after.train[: len(before.train)] == before.train
        extra = after.train[len(before.train) :]
        found.update((index, record.prompt, record.response) for record in extra)
        assert all(record.client == after.name and record.text is None for record in extra)
    assert found == {(c.client, c.prompt, c.text): 3 for c in plan.canaries if c.included}
    assert 0 < sum(c.included for c in plan.canaries) < 30, "else half of this shows nothing"
    once = {(r.prompt, r.response) for r in included_records(plan)}
    assert once == {(prompt, text) for _, prompt, text in found}


def test_two_canaries_of_one_client_are_both_planted() -> None:
    canaries = tuple(
        Canary(index=i, kind=SECRET, prompt=str(i), text="ab"[i], client=0, included=True)
        for i in range(2)
    )
    plan = CanaryPlan(seed=0, canaries=canaries, repeats=2)
    extra = WithCanaries(dataset(), plan).client(0).train[-4:]
    assert [record.response for record in extra] == ["a", "a", "b", "b"]


def test_public_facts_hold_no_secret() -> None:
    plan = both(count=10, population=50, seed=4)
    with_canaries = WithCanaries(dataset(), plan)
    assert with_canaries.population == 50
    facts = with_canaries.describe()
    kinds = {SECRET: 10, RARE_TOKEN: 10}
    assert facts["canaries"] == {"count": 20, "kinds": kinds, "repeats": 2}
    assert facts["clients"] == 50
    shown = json.dumps([facts, plan.opening(), repr(plan.canaries)])
    assert not any(canary.prompt in shown for canary in plan.canaries)
    assert not any(f"{canary.text}" in shown for canary in plan.canaries)


def test_a_plan_for_more_clients_than_there_are() -> None:
    with pytest.raises(InvalidValue, match="expected below 10"):
        WithCanaries(dataset(10), both(population=50))


def test_audits_see_the_canaries_by_kind_and_side() -> None:
    plan = both(count=30, references=40)
    found = planted(plan)
    assert [texts.kind for texts in found.kinds] == list(KINDS)
    for texts in found.kinds:
        mine = [c for c in plan.canaries if c.kind == texts.kind]
        assert texts.included == tuple(c.passage for c in mine if c.included)
        assert texts.held_out == tuple(c.passage for c in mine if not c.included)
        assert texts.references == references(plan, texts.kind)
        assert (texts.repeats, texts.per_client, texts.clients_per_canary) == (2, 1, 1)
        assert texts.independent_coins
    assert (found.commitment, found.committed) == (plan.digest(), False)
    assert (found.coins, found.salt) == (plan.coins_hex(), plan.salt())
