"""Facts of the embedded corpus: trained on or not, comparable, and readable by a real model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from client.adapter import adapt
from client.data import Record
from client.model import load_base
from server.audit.facts import PersonalFact, PersonalFacts, questions
from server.audit.inline import read_inline
from shared.errors import InvalidValue
from simulations.auditing.facts import personal_facts
from simulations.auditing.target import ModelTarget
from simulations.basepath import ASSETS
from simulations.canaries import WithCanaries, plan_canaries
from simulations.corpora import private_records, secrets
from simulations.dataset import ClinicsDataset, RecordsDataset

CLINICS = ClinicsDataset(population=60, seed=5, records=8, holdout=0.25)


@pytest.fixture(scope="module")
def facts() -> PersonalFacts:
    found = personal_facts(CLINICS, seed=3, per_kind=20, candidates=5, holders=40)
    assert found is not None
    return found


def training_text(clients: range, records: int = 8) -> str:
    """All records of some clients as one text, held-out ones included."""
    return "\n".join(
        text for client in clients for text in private_records(client, seed=5, records=records)
    )


def stands_in(fact: PersonalFact, text: str) -> bool:
    return (fact.before + fact.text) in text


def test_trained_facts_stand_in_training_records_and_the_others_nowhere(
    facts: PersonalFacts,
) -> None:
    inside = "\n".join(
        str(record.text) for client in range(60) for record in CLINICS.client(client).train
    )
    everything = training_text(range(60))
    assert all(stands_in(fact, inside) for fact in facts.trained)
    assert not any(stands_in(fact, everything) for fact in facts.fresh)
    assert not any(fact.text.strip() in everything for fact in facts.fresh)
    beyond = training_text(range(60, 60 + 40))
    assert all(stands_in(fact, beyond) for fact in facts.fresh)


def test_both_sides_have_every_kind_and_one_fact_a_client(facts: PersonalFacts) -> None:
    kinds = {"name": 20, "phone": 20, "record_number": 20, "address": 20}
    owners = {s.text: client for client in range(100) for s in secrets(client, 5)}
    for side in (facts.trained, facts.fresh):
        assert Counter(fact.kind for fact in side) == kinds
        held = {(fact.kind, owners[fact.text.strip()]) for fact in side}
        assert len(held) == len(side)


def test_candidates_are_of_one_kind_and_of_nobody_else(facts: PersonalFacts) -> None:
    theirs = {
        kind: {s.text for client in range(100, 900) for s in secrets(client, 5) if s.kind == kind}
        for kind in facts.kinds()
    }
    dealt: Counter[str] = Counter()
    for fact in (*facts.trained, *facts.fresh):
        assert len(fact.candidates) == 5
        assert all(text.startswith(" ") for text in (fact.text, *fact.candidates))
        assert all(text.strip() in theirs[fact.kind] for text in fact.candidates)
        assert not {text.strip() for text in fact.candidates} & set().union(
            *(held.keys() for held in (*_trained(facts), *_fresh(facts)))
        )
        dealt.update(fact.candidates)
    # Two people may have one name; nothing else comes twice.
    assert sum(count > 1 for text, count in dealt.items() if any(c.isdigit() for c in text)) == 0


def _trained(facts: PersonalFacts) -> tuple[dict[str, str], ...]:
    assert facts.holders is not None
    return tuple(dict(held) for held in facts.holders.trained)


def _fresh(facts: PersonalFacts) -> tuple[dict[str, str], ...]:
    assert facts.holders is not None
    return tuple(dict(held) for held in facts.holders.fresh)


def test_holders_hold_what_their_records_say_and_share_nothing(facts: PersonalFacts) -> None:
    trained, fresh = _trained(facts), _fresh(facts)
    assert len(trained) == len(fresh) == 40
    everything = training_text(range(60))
    assert all(text in everything for held in trained for text in held)
    assert not {t for held in trained for t in held} & {t for held in fresh for t in held}


def test_facts_are_asked_for_by_name(facts: PersonalFacts) -> None:
    (phone,) = facts.of("phone", trained=True, most=1)
    name = next(
        secret.patient
        for client in range(60)
        for secret in secrets(client, 5)
        if secret.text == phone.text.strip()
    )
    assert phone.asked == questions("phone", name)
    assert phone.before.startswith(f"Pt {name} ")
    assert phone.before.endswith(" tel")


def test_the_seed_chooses_and_the_same_seed_chooses_the_same() -> None:
    first, again, other = (
        personal_facts(CLINICS, seed=seed, per_kind=3, candidates=2, holders=3)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_canaries_around_the_corpus_are_looked_through() -> None:
    planted = WithCanaries(CLINICS, plan_canaries(count=4, population=60, seed=1))
    bare = personal_facts(CLINICS, seed=1, per_kind=2, candidates=2, holders=2)
    assert personal_facts(planted, seed=1, per_kind=2, candidates=2, holders=2) == bare


def test_a_fact_only_in_held_out_records_was_not_trained_on() -> None:
    half = replace(CLINICS, records=6, holdout=0.5)
    found = personal_facts(half, seed=1, per_kind=60, candidates=1, holders=60)
    assert found is not None
    inside = "\n".join(
        str(record.text) for client in range(60) for record in half.client(client).train
    )
    assert all(stands_in(fact, inside) for fact in found.trained)
    assert sum(map(len, _trained(found))) < 60 * 12 / 2 + 60


def test_other_data_plant_no_facts() -> None:
    files = RecordsDataset(
        records=[Record(text="a"), Record(text="b")],
        names=["x"],
        members=[np.arange(2)],
        source="x.txt",
        partitioner="iid",
        seed=1,
        holdout=0.0,
    )
    assert personal_facts(files, seed=1) is None
    with pytest.raises(InvalidValue, match="per_kind=0"):
        personal_facts(CLINICS, seed=1, per_kind=0)


@pytest.mark.slow
def test_a_real_model_reads_the_tokens_of_a_fact_and_no_others(facts: PersonalFacts) -> None:
    """The demo model, against the library's own logits for the same tokens."""
    base = load_base(str(ASSETS / "demo"), quantization="none")
    target = ModelTarget(adapt(base, r=2, alpha=2, target_modules="all-linear"), max_length=96)
    chosen = [facts.of(kind, trained=True, most=1)[0] for kind in facts.kinds()]
    found = read_inline(target, [(f.before, f.text) for f in chosen], adapter=False)
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "demo", dtype=torch.float32)
    for fact, reading in zip(chosen, found, strict=True):
        assert reading is not None
        before, text = (
            base.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (fact.before, fact.text)
        )
        ids = [base.tokenizer.bos_token_id, *before, *text]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [float(logs[place - 1, ids[place]]) for place in range(len(ids))][-len(text) :]
        assert reading.log_probability == pytest.approx(np.array(wanted), abs=1e-3)
