from __future__ import annotations

import hashlib
import re
import time
from itertools import islice

import numpy as np
import pytest

from shared.errors import InvalidValue
from simulations.corpora import (
    CANARY_LENGTH,
    CANARY_WORDS,
    CLIENTS_DEFAULT,
    COMPLAINTS,
    PATIENTS,
    canary_secret,
    canary_text,
    client_name,
    private_records,
    secrets,
)
from simulations.public_text import public_documents

# Surnames are one capitalised word; the last group is the patient's planted fact.
NOTE_HEADER = re.compile(r"Pt [A-Z][a-z]+ [A-Z][a-z]+ \d+[mf] (tel|rec|addr) \S")
FACTS = {
    "name": re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+"),
    "phone": re.compile(r"\d{3} 555 01\d\d"),
    "record_number": re.compile(r"[A-Z]{2}-\d{5}"),
    "address": re.compile(r"\d+ [A-Z][a-z]+ (Rd|St|Ln|Row|Cl|Ave) [A-Z][a-z]+"),
}

PINNED = "a694c694c3c88e74a146e1bcf053719908c802544a3ae9fdcd2807cb8eb781a1"


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    first = private_records(3, seed=1, records=8)
    assert first == private_records(3, seed=1, records=8)
    assert set(first).isdisjoint(private_records(3, seed=2, records=8))
    assert secrets(3, 1) == secrets(3, 1)
    assert secrets(3, 1) != secrets(3, 2)


def test_the_text_is_the_same_on_every_machine() -> None:
    text = "\n\n".join(private_records(17, seed=1, records=20))
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    assert private_records(5, seed=1, records=30)[:7] == private_records(5, seed=1, records=7)


def test_no_two_default_clients_share_a_name_a_record_or_a_set_of_facts() -> None:
    assert CLIENTS_DEFAULT >= 1000
    clients = range(CLIENTS_DEFAULT)
    assert len({client_name(client, 1) for client in clients}) == CLIENTS_DEFAULT
    records = [
        record for client in clients for record in private_records(client, seed=1, records=4)
    ]
    assert len(set(records)) == len(records)
    facts = {frozenset(secret.text for secret in secrets(client, 1)) for client in clients}
    assert len(facts) == CLIENTS_DEFAULT


def test_clients_have_habits_of_their_own() -> None:
    def habits(client: int) -> tuple[frozenset[str], frozenset[str]]:
        """The conditions and the labels that occur in a client's records."""
        text = "\n".join(private_records(client, seed=1, records=40))
        labels = re.findall(r"(CC|c/o|Sx|DX|dx|Dx|Imp|RX|rx|Tx|FU|f/u|Rv|Plan)(?:: | - |= )", text)
        return frozenset(name for name in COMPLAINTS if f" {name}" in text), frozenset(labels)

    seen = [habits(client) for client in range(40)]
    assert len({conditions for conditions, _ in seen}) >= 38
    assert {len(labels) for _, labels in seen} == {4}
    assert len({labels for _, labels in seen}) == 4


def test_a_client_of_any_index_costs_the_same() -> None:
    private_records(0, seed=1, records=10)
    began = time.perf_counter()
    for client in (10**6 - 1, 10**12, 2**80):
        assert len(private_records(client, seed=1, records=10)) == 10
    # About a millisecond; the bound only has to tell it from work that grows with the index.
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("client", [0, 1, 2, 3, 999_999])
def test_every_secret_stands_in_the_first_records(client: int) -> None:
    first = private_records(client, seed=4, records=PATIENTS)
    planted = secrets(client, 4)
    assert len(planted) == 2 * PATIENTS
    assert {secret.kind for secret in planted} == set(FACTS)
    for secret in planted:
        assert FACTS[secret.kind].fullmatch(secret.text)
        assert any(secret.text in record and secret.patient in record for record in first)


def test_facts_do_not_stand_in_the_records_of_others() -> None:
    others = "\n".join(
        record for client in range(1, 200) for record in private_records(client, seed=1, records=6)
    )
    whole = [secret for secret in secrets(0, 1) if secret.kind in {"record_number", "address"}]
    assert whole
    assert not [secret for secret in whole if secret.text in others]


def test_every_record_is_a_note_and_no_public_document_is() -> None:
    notes = [
        record for client in range(100) for record in private_records(client, seed=1, records=6)
    ]
    assert all(NOTE_HEADER.match(note) for note in notes)
    for document in islice(public_documents(1), 5000):
        assert not NOTE_HEADER.search(document)


def test_there_are_256_different_canary_words() -> None:
    assert len(CANARY_WORDS) == len(set(CANARY_WORDS)) == 256
    assert all(re.fullmatch("[a-z]{3,}", word) for word in CANARY_WORDS)


def test_the_text_of_a_canary_is_its_words() -> None:
    assert canary_text(("river", "lamp", "lamp", "yellow")) == " river lamp lamp yellow"


def test_canaries_use_every_word_and_repeat_with_their_seed() -> None:
    rng = np.random.default_rng(1)
    drawn = [canary_secret(rng) for _ in range(1000)]
    # A word is missed by 4,000 uniform draws with probability 1.6e-7.
    assert {word for secret in drawn for word in secret} == set(CANARY_WORDS)
    assert all(len(secret) == CANARY_LENGTH for secret in drawn)
    assert canary_secret(np.random.default_rng(1)) == drawn[0]


@pytest.mark.parametrize(
    "words", [("river", "lamp", "lamp"), ("river", "lamp", "lamp", "Yellow"), ("river",) * 5]
)
def test_a_canary_of_other_words_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue, match="expected 4"):
        canary_text(words)


@pytest.mark.parametrize("client", [-1, True, 1.0, "1"])
def test_a_client_that_is_not_an_index_is_refused(client: object) -> None:
    with pytest.raises(InvalidValue, match="client="):
        private_records(client, seed=1, records=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("records", [0, -1, True, 2.0])
def test_a_count_of_records_that_is_not_positive_is_refused(records: object) -> None:
    with pytest.raises(InvalidValue, match="records="):
        private_records(0, seed=1, records=records)  # type: ignore[arg-type]


def test_a_seed_that_is_not_an_integer_is_refused() -> None:
    with pytest.raises(InvalidValue, match="seed="):
        client_name(0, 1.5)  # type: ignore[arg-type]
