"""Canaries: their coins, the one client of each, the commitment, and what stays untouched."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from scipy import stats

from shared.errors import AuditError, InvalidValue
from simulations.canaries import Canary, CanaryPlan, WithCanaries, plan_canaries, references
from simulations.corpora import CANARY_PREFIX, CANARY_WORDS
from simulations.dataset import ClinicsDataset


def dataset(population: int = 50) -> ClinicsDataset:
    return ClinicsDataset(population=population, seed=3, records=8, holdout=0.25)


def test_a_plan_repeats_and_depends_on_the_seed() -> None:
    plan = plan_canaries(count=40, population=100, seed=1, repeats=2)
    assert plan == plan_canaries(count=40, population=100, seed=1, repeats=2)
    other = plan_canaries(count=40, population=100, seed=2, repeats=2)
    assert not {c.text for c in plan.canaries} & {c.text for c in other.canaries}
    assert [c.index for c in plan.canaries] == list(range(40))
    assert all(c.text.startswith(CANARY_PREFIX) for c in plan.canaries)
    assert all(set(c.words) <= set(CANARY_WORDS) for c in plan.canaries)


def test_every_canary_has_a_client_of_its_own_while_there_are_enough() -> None:
    plan = plan_canaries(count=100, population=100, seed=1)
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


def test_no_canaries() -> None:
    plan = plan_canaries(count=0, population=5, seed=1)
    assert plan.canaries == ()
    assert plan.per_client == 1
    assert WithCanaries(dataset(), plan).client(3) == dataset().client(3)


@pytest.mark.statistical
def test_coins_are_fair_and_independent_of_the_client() -> None:
    """False alarms: 1e-4 for each of two exact tests, had the seeds been fresh."""
    canaries = [c for s in range(20) for c in plan_canaries(
        count=100, population=1000, seed=s).canaries]  # fmt: skip
    included = sum(c.included for c in canaries)
    assert stats.binomtest(included, len(canaries)).pvalue > 1e-4
    low = [c.included for c in canaries if c.client < 500]
    high = [c.included for c in canaries if c.client >= 500]
    table = [[sum(side), len(side) - sum(side)] for side in (low, high)]
    assert stats.fisher_exact(table).pvalue > 1e-4
    assert len({sum(c.included for c in canaries[i : i + 100]) for i in range(0, 2000, 100)}) > 1, (
        "coins of their own, not a balanced draw"
    )


BAD: list[dict[str, Any]] = [
    {"count": -1}, {"count": True}, {"count": 1.5}, {"count": 10**12}, {"population": 0},
    {"repeats": 0}, {"seed": "x"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_plans_that_cannot_be(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"count": 4, "population": 5, "seed": 1, "repeats": 1}
    with pytest.raises(InvalidValue):
        plan_canaries(**{**good, **bad})


def test_the_json_form_reads_back() -> None:
    plan = plan_canaries(count=10, population=5, seed=1, repeats=3)
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
    ("client", -1), ("client", 1.0), ("included", 1), ("words", ["a", "b", "c", "d"]),
    ("words", 3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BROKEN)
def test_a_malformed_json_form(key: str, value: object) -> None:
    with pytest.raises(AuditError, match="malformed"):
        CanaryPlan.from_json(_broken(key, value))


def test_equal_secrets_and_wrong_order_are_refused() -> None:
    words = CANARY_WORDS[:4]
    one = Canary(index=0, words=words, client=0, included=True)
    twin = Canary(index=1, words=words, client=1, included=False)
    for canaries in ((one, twin), (twin,)):
        with pytest.raises(InvalidValue):
            CanaryPlan(seed=0, canaries=canaries, repeats=1)


def test_the_digest_commits_to_every_part() -> None:
    plan = plan_canaries(count=6, population=9, seed=1, repeats=2)
    first, *rest = plan.canaries
    changed = [
        Canary(index=0, words=first.words, client=first.client, included=not first.included),
        Canary(index=0, words=first.words, client=first.client + 10, included=first.included),
        Canary(index=0, words=first.words[::-1], client=first.client, included=first.included),
    ]
    plans = [CanaryPlan(seed=1, canaries=(c, *rest), repeats=2) for c in changed]
    plans.append(CanaryPlan(seed=1, canaries=plan.canaries, repeats=3))
    plans.append(CanaryPlan(seed=2, canaries=plan.canaries, repeats=2))
    digests = {plan.digest(), *(other.digest() for other in plans)}
    assert len(digests) == 6
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)
    assert plan.digest() == plan_canaries(count=6, population=9, seed=1, repeats=2).digest()


def test_references_are_fresh_and_of_the_same_form() -> None:
    plan = plan_canaries(count=50, population=60, seed=1)
    fresh = references(plan, 500, 1)
    assert len(set(fresh)) == 500
    assert not {c.text for c in plan.canaries} & set(fresh)
    assert all(text.startswith(CANARY_PREFIX) and len(text.split()) == 8 for text in fresh)
    assert fresh == references(plan, 500, 1)
    assert fresh != references(plan, 500, 2)
    with pytest.raises(InvalidValue, match="count="):
        references(plan, 10**12, 1)


def test_references_step_over_the_canaries_of_the_plan() -> None:
    would_be = references(CanaryPlan(seed=0, canaries=(), repeats=1), 3, 1)
    canaries = tuple(
        Canary(index=i, words=tuple(text.split()[-4:]), client=i, included=False)
        for i, text in enumerate(would_be)
    )
    plan = CanaryPlan(seed=0, canaries=canaries, repeats=1)
    assert [canary.text for canary in plan.canaries] == would_be
    assert not set(references(plan, 3, 1)) & set(would_be)


def test_included_canaries_go_to_their_client_and_held_out_ones_nowhere() -> None:
    plain = dataset()
    plan = plan_canaries(count=30, population=50, seed=4, repeats=3)
    planted = WithCanaries(plain, plan)
    found: Counter[tuple[int, str]] = Counter()
    for index in range(50):
        before, after = plain.client(index), planted.client(index)
        assert after.name == before.name
        assert after.holdout == before.holdout
        assert after.train[: len(before.train)] == before.train
        extra = after.train[len(before.train) :]
        found.update((index, str(record.text)) for record in extra)
        assert all(record.client == after.name for record in extra)
    assert found == {(c.client, c.text): 3 for c in plan.canaries if c.included}
    assert 0 < sum(c.included for c in plan.canaries) < 30, "else half of this shows nothing"


def test_two_canaries_of_one_client_are_both_planted() -> None:
    canaries = tuple(
        Canary(index=i, words=CANARY_WORDS[i : i + 4], client=0, included=True) for i in range(2)
    )
    planted = WithCanaries(dataset(), CanaryPlan(seed=0, canaries=canaries, repeats=2))
    extra = [record.text for record in planted.client(0).train[-4:]]
    assert extra == [canaries[0].text] * 2 + [canaries[1].text] * 2


def test_public_facts_hold_no_secret() -> None:
    plan = plan_canaries(count=10, population=50, seed=4)
    planted = WithCanaries(dataset(), plan)
    assert planted.population == 50
    facts = planted.describe()
    assert facts["canaries"] == {"count": 10, "repeats": 1}
    assert facts["clients"] == 50
    shown = json.dumps(facts)
    assert not any(canary.text in shown for canary in plan.canaries)


def test_a_plan_for_more_clients_than_there_are() -> None:
    plan = plan_canaries(count=50, population=50, seed=4)
    with pytest.raises(InvalidValue, match="expected below 10"):
        WithCanaries(dataset(10), plan)
