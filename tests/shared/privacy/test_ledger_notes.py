"""Notes in the chain, in both stores: what they say, when, and that nothing else changes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidValue, LedgerConflict, LedgerError, LedgerTampered
from shared.privacy.events import GaussianEvent
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_notes import AUDIT_REPORT, CANARY_COINS
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.ledger_store import append, read_chain
from tests.ledgers import EVENT, PLAN, SCOPE, SEEDED, Place, plan_of, processes, reserve

SIGNER = LedgerSigner(b"a key for the tests of notes....")
V1 = Path(__file__).parent / "data" / "ledger-v1.sqlite.gz"


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


COINS, OTHER = digest_of("coins"), digest_of("other coins")


def test_a_note_has_its_place_in_the_chain_and_charges_nobody(ledger: Ledger) -> None:
    assert ledger.first_charge("run") is None
    assert ledger.notes() == ()
    note = ledger.note("run", SCOPE, CANARY_COINS, COINS)
    first = reserve(ledger, 1)
    late = ledger.note("run", SCOPE, "closing-words", OTHER)
    ledger.abandon(first)
    assert (note.seq, late.seq, ledger.first_charge("run")) == (1, 3, 2)
    assert (note.name, note.digest, note.run_id, note.scope) == (CANARY_COINS, COINS, "run", SCOPE)
    assert note.time <= late.time
    assert ledger.notes() == ledger.notes("run") == (note, late)
    assert ledger.notes("another") == ()
    assert ledger.spent("everyone", SCOPE).releases == 0
    report = ledger.verify()
    assert (report.entries, report.notes, report.reservations, report.subjects) == (4, 2, 1, 1)


def test_saying_it_again_changes_nothing_and_saying_otherwise_is_refused(ledger: Ledger) -> None:
    note = ledger.note("run", SCOPE, CANARY_COINS, COINS)
    reserve(ledger, 1)
    head = ledger.head()
    assert ledger.note("run", SCOPE, CANARY_COINS, COINS) == note
    with pytest.raises(LedgerConflict, match="another digest as 'canary-coins'") as caught:
        ledger.note("run", SCOPE, CANARY_COINS, OTHER)
    assert "entry 1" in caught.value.hint
    assert ledger.head() == head
    ledger.note("another run", SCOPE, CANARY_COINS, OTHER)
    assert [n.run_id for n in ledger.notes()] == ["run", "another run"]
    ledger.verify()


def test_what_a_release_saw_may_be_said_of_each_release(ledger: Ledger) -> None:
    first = ledger.note("run", SCOPE, AUDIT_REPORT, COINS)
    second = ledger.note("run", SCOPE, AUDIT_REPORT, OTHER)
    assert ledger.note("run", SCOPE, AUDIT_REPORT, COINS) == first
    assert ledger.notes("run") == (first, second)
    assert ledger.verify().notes == 2


def test_a_run_without_a_plan_may_be_noted_but_keeps_its_scope(place: Place) -> None:
    """Mode none registers no plan, and its canaries are committed to all the same."""
    with Ledger(place.where) as ledger:
        ledger.note("open", SCOPE, CANARY_COINS, COINS)
        for spoil in (
            lambda: ledger.note("open", "elsewhere", "closing-words", OTHER),
            lambda: ledger.register_plan("open", PLAN, "elsewhere"),
        ):
            with pytest.raises(LedgerConflict, match="another scope"):
                spoil()
        ledger.register_plan("open", PLAN, SCOPE)
        ledger.register_plan("planned", PLAN, SCOPE)
        with pytest.raises(LedgerConflict, match="another scope"):
            ledger.note("planned", "elsewhere", CANARY_COINS, COINS)
        reserve(ledger, 1, run_id="open")
        assert ledger.verify().entries == 2


@pytest.mark.parametrize(
    "name", ["", "Coins", "canary coins", "-coins", "coins-", "a--b", "coins2", "a-b-c-d-e", "ü"]
)
def test_names_are_a_few_lower_case_words(ledger: Ledger, name: str) -> None:
    with pytest.raises(InvalidValue, match="note name="):
        ledger.note("run", SCOPE, name, COINS)
    assert ledger.head().seq == 0


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, COINS.upper(), "the coins themselves"])
def test_a_note_holds_a_digest_and_never_shows_what_was_given(ledger: Ledger, digest: str) -> None:
    with pytest.raises(InvalidValue, match="64 hex digits") as caught:
        ledger.note("run", SCOPE, CANARY_COINS, digest)
    assert digest == "" or digest not in str(caught.value)
    assert ledger.head().seq == 0


def test_a_note_names_a_run_and_its_data(ledger: Ledger) -> None:
    for run_id, scope in (("", SCOPE), ("run", ""), ("a\0b", SCOPE)):
        with pytest.raises(InvalidValue, match="non-empty"):
            ledger.note(run_id, scope, CANARY_COINS, COINS)


def test_a_note_moves_the_signed_head_and_needs_its_key(place: Place) -> None:
    with Ledger(place.where, signer=SIGNER) as ledger:
        note = ledger.note("run", SCOPE, CANARY_COINS, COINS)
        head = ledger.signed_head()
        assert head is not None
        assert head.seq == note.seq == 1
        assert ledger.note("run", SCOPE, CANARY_COINS, COINS) == note
        assert ledger.signed_head() == head
        ledger.register_plan("run", PLAN, SCOPE)
        reserve(ledger, 1)
        report = ledger.verify(head, trusted_key=SIGNER.public_key)
        assert (report.signatures, report.signed_from, report.notes) == (2, 1, 1)
    with Ledger(place.where) as ledger:
        assert ledger.notes("run") == (note,)
        with pytest.raises(LedgerError, match="no signer was given"):
            ledger.note("run", SCOPE, "closing-words", OTHER)


def test_a_first_signature_covers_the_notes_before_it(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.note("run", SCOPE, CANARY_COINS, COINS)
    with Ledger(place.where, signer=SIGNER) as ledger:
        ledger.note("run", SCOPE, "closing-words", OTHER)
        assert ledger.verify(trusted_key=SIGNER.public_key).signed_from == 2
    place.damage(f"UPDATE entries SET event = replace(event, '{COINS}', '{OTHER}') WHERE seq = 1")  # noqa: S608
    with Ledger(place.where) as ledger, pytest.raises(LedgerTampered, match="entry 1 does not"):
        ledger.verify()


def test_reading_only_reads_notes_and_writes_none(place: Place) -> None:
    with Ledger(place.where) as ledger:
        note = ledger.note("run", SCOPE, CANARY_COINS, COINS)
    with Ledger(place.where, read_only=True) as reader:
        assert reader.notes() == (note,)
        with pytest.raises(LedgerError, match="for reading only"):
            reader.note("run", SCOPE, "closing-words", OTHER)


def event(**change: Any) -> str:
    said = {"schema": 1, "type": "note", "name": CANARY_COINS, "digest": OTHER, **change}
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


BAD_FORMS: dict[str, dict[str, Any]] = {
    "of a reservation": {"reservation": 1},
    "of a round": {"server_round": 1},
    "of an attempt": {"attempt": 1},
    "with a subject": {"subject": "everyone"},
    "with a plan": {"plan_digest": PLAN.digest()},
    "with a key": {"idempotency_key": "k"},
    "without a run": {"run_id": ""},
    "of another schema": {"event": event(schema=2)},
    "of another type": {"event": event(type="gaussian")},
    "of another name": {"event": event(name="Some name")},
    "of a number": {"event": event(digest=7)},
    "with more in it": {"event": event(more=1)},
    "with less in it": {"event": '{"name":"canary-coins"}'},
    "in another order": {"event": event()[:-1] + " }"},
    "that is a list": {"event": "[]"},
    "that is not JSON": {"event": "coins"},
}


def forge(ledger: Ledger, **change: Any) -> None:
    """Append a note like the first entry, with changes, as someone would who knows the hashes."""
    with ledger._store.transaction() as db:
        first = next(iter(read_chain(db))).entry
        append(db, [replace(first, **change)])


@pytest.mark.parametrize("how", BAD_FORMS)
def test_a_hashed_note_of_another_form_is_found_and_named(ledger: Ledger, how: str) -> None:
    ledger.note("run", SCOPE, CANARY_COINS, COINS)
    reserve(ledger, 1)
    forge(ledger, **BAD_FORMS[how])
    with pytest.raises(LedgerTampered, match="entry 3 is not a note of a form that is known"):
        ledger.verify()
    if "reservation" not in BAD_FORMS[how]:
        with pytest.raises(LedgerTampered, match="entry 3 is not a note"):
            ledger.notes()


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"event": event()}, "entry 3 says again what entry 1 had said"),
        ({}, "entry 3 says again what entry 1 had said"),
        (
            {"event": event(name="closing-words"), "scope": "elsewhere"},
            "entry 3 is a note about an",
        ),
        ({"run_id": "new", "scope": "elsewhere"}, None),
        ({"event": event(name="closing-words")}, None),
    ],
)
def test_a_hashed_note_that_contradicts_another_is_found(
    ledger: Ledger, change: dict[str, Any], finding: str | None
) -> None:
    ledger.note("run", SCOPE, CANARY_COINS, COINS)
    reserve(ledger, 1)
    forge(ledger, **change)
    if finding is None:
        assert ledger.verify().notes == 2
        return
    with pytest.raises(LedgerTampered, match=finding):
        ledger.verify()


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (f"UPDATE entries SET event = replace(event, '{COINS}', '{OTHER}')", "entry 1 does not"),  # noqa: S608
        ("UPDATE entries SET time = '2001-01-01' WHERE seq = 1", "entry 1 does not have its hash"),
        ("DELETE FROM entries WHERE seq = 1", "entry 1 is missing"),
        ("UPDATE entries SET state = 'reserved' WHERE seq = 1", "entry 1 does not have its hash"),
    ],
)
def test_a_note_that_was_edited_moved_or_removed_is_found(
    ledger: Ledger, place: Place, statement: str, finding: str
) -> None:
    ledger.note("run", SCOPE, CANARY_COINS, COINS)
    reserve(ledger, 1)
    place.damage(statement)
    with pytest.raises(LedgerTampered, match=finding):
        ledger.verify()


def test_a_note_cannot_be_changed_by_accident(ledger: Ledger) -> None:
    ledger.note("run", SCOPE, CANARY_COINS, COINS)
    with (
        pytest.raises(LedgerError, match="entries are append-only"),
        ledger._store.transaction() as db,
    ):
        db.execute("UPDATE entries SET event = ''")
    ledger.verify()


def test_a_file_of_schema_1_takes_notes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(gzip.decompress(V1.read_bytes()))
    with Ledger(path, read_only=True) as reader:
        before = reader.verify()
        assert reader.notes() == ()
    with Ledger(path) as ledger:
        ledger.note("new", SCOPE, CANARY_COINS, COINS)
        report = ledger.verify(before.head)
    assert (report.entries, report.notes) == (before.entries + 1, 1)


def test_charges_are_read_back_as_they_were_made(place: Place) -> None:
    other = plan_of(noise_multiplier=3.0, cap=PLAN.cap)
    with Ledger(place.where) as ledger:
        for run, plan, scope in (("a", PLAN, SCOPE), ("b", other, SCOPE), ("c", PLAN, "elsewhere")):
            ledger.register_plan(run, plan, scope)
        assert ledger.charges(SCOPE) == ()
        ledger.note("a", SCOPE, CANARY_COINS, COINS)
        ledger.commit(reserve(ledger, 1, "y", "x", run_id="a"))
        ledger.abandon(reserve(ledger, 2, "x", run_id="a"))
        reserve(ledger, 1, "z", run_id="b", event=other.event_for_participation())
        reserve(ledger, 1, "x", run_id="c")
        first, second, third = ledger.charges(SCOPE)
        (elsewhere,) = ledger.charges("elsewhere")
        assert [ledger.first_charge(run) for run in "abcd"] == [2, 7, 8, None]
    assert (first.run_id, first.server_round, first.subjects) == ("a", 1, ("x", "y"))
    assert [c.state for c in (first, second, third)] == ["committed", "abandoned", "reserved"]
    assert (first.event, first.plan_digest) == (EVENT, PLAN.digest())
    assert third.event == GaussianEvent(noise_multiplier=3.0, sampling_probability=0.2)
    assert (third.plan_digest, third.run_id) == (other.digest(), "b")
    assert (elsewhere.reservation, elsewhere.subjects) == (4, ("x",))


def test_a_repeat_without_a_second_charge_is_one_charge(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", SEEDED, SCOPE)
        for _ in range(2):
            ledger.commit(reserve(ledger, 1, idempotency_key="k"))
        assert len(ledger.charges(SCOPE)) == 1


def _killed(where: str, when: str) -> None:
    with Ledger(where) as ledger:
        if when == "inside the transaction":
            with ledger._store.transaction() as db:
                first = next(iter(read_chain(db))).entry
                append(db, [replace(first, event=event(name="closing-words"))])
                os.kill(os.getpid(), signal.SIGKILL)
        ledger.note("run", SCOPE, "closing-words", OTHER)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("when", "kept"), [("after it", 2), ("inside the transaction", 1)])
def test_a_killed_process_leaves_a_whole_note_or_none(place: Place, when: str, kept: int) -> None:
    with Ledger(place.where) as ledger:
        ledger.note("run", SCOPE, CANARY_COINS, COINS)
    child = processes().Process(target=_killed, args=(place.where, when))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with Ledger(place.where) as ledger:
        assert ledger.verify().notes == len(ledger.notes("run")) == kept
        ledger.note("run", SCOPE, "closing-words", OTHER)
        assert ledger.verify().notes == 2


def _say(where: str, digest: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    with Ledger(where) as ledger:
        try:
            results.put(ledger.note("run", SCOPE, CANARY_COINS, digest).digest)
        except LedgerConflict:
            results.put(None)


@pytest.mark.slow
def test_processes_that_commit_at_once_commit_to_one_thing(place: Place) -> None:
    Ledger(place.where).close()
    fork = processes()
    barrier, results = fork.Barrier(4), fork.Queue()
    digests = [COINS, OTHER, COINS, OTHER]
    workers = [
        fork.Process(target=_say, args=(place.where, digest, barrier, results))
        for digest in digests
    ]
    for worker in workers:
        worker.start()
    said = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    with Ledger(place.where) as ledger:
        (note,) = ledger.notes("run")
        assert sorted(said, key=str) == sorted([None, None, note.digest, note.digest], key=str)
        assert ledger.verify().notes == 1
