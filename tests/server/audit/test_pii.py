"""Attacks on personal facts: a model that remembers, one that does not, and stored evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from server.audit import pii
from server.audit.facts import Holders, PersonalFact, PersonalFacts, questions
from server.audit.pii import FactsFound
from server.audit.protocol import AuditContext, Effort
from shared.errors import AuditError
from tests.server.audit import oracles
from tests.server.audit.babbler import Babbler

KINDS = ("name", "phone")


def invent(seed: int, side: str, number: int, kind: str, candidates: int = 7) -> PersonalFact:
    """A fact of three words out of 200, with candidates of the same form."""
    rng = np.random.default_rng([seed, number, KINDS.index(kind), side == "fresh"])
    words = rng.permutation(200)[: 3 * (candidates + 1)]
    texts = ["".join(f" zqx{word}" for word in row) for row in words.reshape(-1, 3)]
    person = f"{side}{number}"
    return PersonalFact(
        kind=kind,
        before=f"Pt {person} {kind}",
        text=texts[0],
        candidates=tuple(texts[1:]),
        asked=questions(kind, person) if kind == "phone" else (),
    )


def facts(seed: int = 0, count: int = 12) -> PersonalFacts:
    sides = [
        tuple(invent(seed, side, n, kind) for kind in KINDS for n in range(count))
        for side in ("trained", "fresh")
    ]
    holders = [tuple({f.text.strip(): f.kind} for f in side if f.kind == "name") for side in sides]
    return PersonalFacts(
        trained=sides[0],
        fresh=sides[1],
        holders=Holders(trained=holders[0], fresh=holders[1], openings=("Pt",)),
    )


def record(fact: PersonalFact) -> str:
    return fact.before + fact.text


def model(
    known: PersonalFacts, *, learned: int, end: bool = True, strength: float = 0.9
) -> Babbler:
    """A model that remembers the first trained facts of each kind."""
    sides = (*known.trained, *known.fresh)
    texts = [t for f in sides for t in (f.before, f.text, *f.candidates, *f.asked)]
    memory = [record(f) for kind in KINDS for f in known.of(kind, trained=True, most=learned)]
    return Babbler(texts, memory, end=end, strength=strength)


def attack(
    known: PersonalFacts, target: Babbler, *, effort: Effort = "smoke"
) -> tuple[FactsFound, dict[str, Any]]:
    around = AuditContext(claim=oracles.NO_CLAIM, seed=0, effort=effort)
    evidence = oracles.through_json(pii.measure(known, target, around))
    return FactsFound.read(evidence), evidence


@pytest.mark.parametrize("end", [False, True])
def test_facts_that_were_remembered_are_extracted_and_picked(end: bool) -> None:
    known = facts()
    found, evidence = attack(known, model(known, learned=9, end=end))
    assert found.extractable("trained", "tuned") == 18
    assert found.extractable("trained", "base") == 0
    assert found.extractable("fresh", "tuned") == 0
    p_values = found.p_values()
    assert p_values["facts_extraction"] < 1e-6
    assert p_values["facts_inference"] < 1e-6
    assert (found.trained, found.fresh) == (24, 24)
    assert [kind["trained"]["places"][:9] for kind in evidence["kinds"]] == [[1] * 9] * 2
    assert evidence["kinds"][0]["trained"]["tuned"]["tokens"] == [3] * 12


def test_a_question_gets_what_only_the_question_was_trained_on() -> None:
    """The base model knows the answer to one question; the record's own words do not help it."""
    known = facts()
    asked = known.of("phone", trained=True, most=1)[0]
    texts = [
        t for f in (*known.trained, *known.fresh) for t in (record(f), *f.candidates, *f.asked)
    ]
    target = Babbler(texts, known=[asked.asked[0] + asked.text], end=True)
    found, evidence = attack(known, target)
    derived: Any = found.to_dict()["kinds"]
    assert derived["phone"]["trained"]["asked_tuned"]["greedy"] == 1
    assert derived["phone"]["trained"]["asked_base"]["greedy"] == 1
    assert derived["phone"]["trained"]["tuned"]["greedy"] == 0
    assert evidence["kinds"][0]["trained"]["asked_tuned"]["tokens"] == []


def test_places_are_those_of_the_losses_and_ties_count_against_the_fact() -> None:
    known = facts()
    target = model(known, learned=0)
    target.plain = np.full(target.plain.size, 1 / target.plain.size)
    _, evidence = attack(known, target)
    assert evidence["kinds"][0]["trained"]["places"] == [8] * 12


def test_inference_over_kinds_with_as_many_candidates_is_one_binomial() -> None:
    known = facts()
    found, _ = attack(known, model(known, learned=3))
    first = sum(kind.places["trained"].count(1) for kind in found.kinds)
    expected = reference.binomtest(first, 24, 1 / 8, alternative="greater").pvalue
    assert found.p_values()["facts_inference"] == pytest.approx(float(expected))


def test_what_the_model_writes_by_itself_is_read_through() -> None:
    """A model that starts every record with one of two trained names."""
    known = facts()
    fact = known.of("name", trained=True, most=1)[0]
    target = Babbler(
        [t for f in (*known.trained, *known.fresh) for t in (record(f), *f.candidates, *f.asked)],
        ["Pt" + fact.text],
        strength=0.999,
    )
    found, evidence = attack(known, target, effort="release")
    generated = evidence["generated"]
    assert generated["generations"] == 200
    assert generated["clients"] == [12, 12]
    trained, fresh = generated["kinds"]["name"]["tuned"]
    assert trained >= 1 >= fresh
    assert "facts_generation" in found.p_values()
    assert "by itself" in found.explain()
    smoke, _ = attack(known, target)
    assert smoke.generated is None


def test_generation_is_tested_over_clients() -> None:
    entry = {
        "generations": 9,
        "clients": [20, 20],
        "kinds": {"name": {"tuned": [8, 1], "base": [0, 0]}},
    }
    found = FactsFound.read({"kinds": [], "generated": entry})
    table = [[8, 12], [1, 19]]
    expected = reference.fisher_exact(table, alternative="greater").pvalue
    assert found.p_values()["facts_generation"] == pytest.approx(float(expected))


def test_more_effort_reads_more_and_the_cost_is_said() -> None:
    known = facts(count=40)
    assert [len(known.of("name", trained=True, most=pii.LIMITS[e][0])) for e in pii.LIMITS] == [
        32,
        40,
        40,
    ]
    assert pii.reads(known, "smoke") == 2 * 32 * (4 + 7) + 2 * 32 * (4 + 7 + 4)
    assert pii.reads(known, "release") > pii.reads(known, "smoke")


def test_facts_need_comparable_ones() -> None:
    known = facts()
    around = AuditContext(claim=oracles.NO_CLAIM, seed=0)
    lonely = PersonalFacts(trained=known.trained, fresh=())
    with pytest.raises(AuditError, match="comparable=0"):
        pii.measure(lonely, model(known, learned=0), around)


def test_a_kind_that_only_one_side_has_is_left_out() -> None:
    known = facts()
    fewer = PersonalFacts(trained=known.trained, fresh=known.of("name", trained=False, most=9))
    found, _ = attack(fewer, model(known, learned=0))
    assert [kind.name for kind in found.kinds] == ["name"]


def test_facts_that_are_cut_off_are_counted_and_left_out() -> None:
    known = facts()
    target = model(known, learned=0)
    target.longest = 3
    found, evidence = attack(known, target)
    assert evidence["kinds"][0]["trained"]["unread"] == 12
    assert found.trained == 0
    assert found.p_values()["facts_extraction"] == 1.0


def test_no_text_is_in_the_evidence() -> None:
    known = facts()
    found, evidence = attack(known, model(known, learned=4), effort="release")
    written = f"{evidence} {found.explain()} {found.to_dict()}"
    assert "zqx" not in written
    assert "trained1" not in written


DAMAGES: list[Any] = [
    {"kinds": 3, "generated": None},
    {"kinds": [{}], "generated": None},
    {"kinds": [], "generated": 7},
    {"kinds": [], "generated": {"generations": 1, "clients": [1], "kinds": {}}},
    {"kinds": [], "generated": {"generations": 1, "clients": [1, 1], "kinds": {"a": 1}}},
    {
        "kinds": [],
        "generated": {"generations": 1, "clients": [1, 1], "kinds": {"a": {"tuned": [2, 0]}}},
    },
]


@pytest.mark.parametrize("evidence", DAMAGES)
def test_malformed_evidence_is_an_audit_error(evidence: dict[str, Any]) -> None:
    with pytest.raises(AuditError):
        FactsFound.read(evidence)


@pytest.mark.parametrize("key", ["places", "tuned", "base", "asked_base"])
def test_damage_inside_a_kind_is_an_audit_error(key: str) -> None:
    known = facts(count=3)
    _, evidence = attack(known, model(known, learned=0))
    for wrong in ([9], [0], "x", None, {"tokens": [1], "hits": [1], "tail": [1], "log_p": [None]}):
        evidence["kinds"][0]["trained"][key] = wrong
        if key == "asked_base" and isinstance(wrong, dict):
            continue
        with pytest.raises(AuditError):
            FactsFound.read(evidence)
