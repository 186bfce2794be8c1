from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import LedgerError, LedgerTampered
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner, SignedHead, verify_head
from shared.privacy.ledger_store import (
    ENTRY_FIELDS,
    GENESIS,
    ChainedEntry,
    Entry,
    Head,
    entry_hash,
    read_chain,
)
from tests.ledgers import PLAN, SCOPE, Place, reserve, sqlite_place

SIGNER = LedgerSigner(b"the right key...................")
OTHER = LedgerSigner(b"another key.....................")


@pytest.fixture
def signed(place: Place) -> Iterator[Ledger]:
    """A signed ledger: entries 1 to 8, heads at 2, 3, 5, 6, 8."""
    with Ledger(place.where, signer=SIGNER) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        ledger.commit(reserve(ledger, 1, "a", "b"))
        ledger.commit(reserve(ledger, 2, "a", "b"))
        reserve(ledger, 3, "a", "b")
        yield ledger


def chain_of(ledger: Ledger) -> list[ChainedEntry]:
    with ledger._store.snapshot() as db:
        return list(read_chain(db))


def heads_of(ledger: Ledger) -> list[SignedHead]:
    with ledger._store.snapshot() as db:
        rows = db.execute("SELECT seq, hash, public_key, signature FROM heads ORDER BY seq")
        names = ("seq", "hash", "public_key", "signature")
        return [SignedHead(**dict(zip(names, row, strict=True))) for row in rows]


def test_every_transaction_that_appends_signs_its_end(signed: Ledger) -> None:
    heads = heads_of(signed)
    assert [head.seq for head in heads] == [2, 3, 5, 6, 8]
    chain = chain_of(signed)
    for head in heads:
        verify_head(head, trusted=SIGNER.public_key)
        assert head.hash == chain[head.seq - 1].hash
    assert signed.signed_head() == heads[-1]
    assert heads[-1].head == signed.head()
    report = signed.verify(heads[0], trusted_key=SIGNER.public_key)
    assert (report.signatures, report.signed_from, report.anchored) == (5, 2, True)
    assert report.public_key == SIGNER.public_key


def test_what_appends_nothing_signs_nothing(signed: Ledger) -> None:
    head = signed.signed_head()
    signed.register_plan("another run", PLAN, SCOPE)
    open_one = reserve(signed, 4, "c")
    signed.commit(open_one)
    after = signed.signed_head()
    signed.commit(open_one)
    assert signed.signed_head() == after != head


def test_a_ledger_that_was_never_signed_has_no_signed_head(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        assert ledger.verify(trusted_key=SIGNER.public_key).public_key is None
        reserve(ledger, 1)
        assert ledger.signed_head() is None
        report = ledger.verify()
        assert (report.public_key, report.signatures, report.signed_from) == (None, 0, None)
        with pytest.raises(LedgerTampered, match="entry 1 is not covered by a signature"):
            ledger.verify(trusted_key=SIGNER.public_key)


@pytest.mark.parametrize("signer", [None, OTHER])
def test_a_signed_ledger_is_read_by_all_and_written_by_its_key(
    signed: Ledger, place: Place, signer: LedgerSigner | None
) -> None:
    head = signed.head()
    with Ledger(place.where, signer=signer) as ledger:
        assert ledger.spent("a", SCOPE).releases == 3
        assert ledger.verify(trusted_key=SIGNER.public_key).entries == 8
        known = reserve(signed, 4, "c")
        for write in (
            lambda: reserve(ledger, 5, "c"),
            lambda: ledger.register_plan("x", PLAN, SCOPE),
            lambda: ledger.commit(known),
            lambda: ledger.abandon(known),
        ):
            with pytest.raises(LedgerError, match="is signed by key") as caught:
                write()
            assert not isinstance(caught.value, LedgerTampered)
            assert "key file" in caught.value.hint
    assert signed.head().seq == head.seq + 1


def test_a_ledger_may_be_signed_from_some_entry_on(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        ledger.commit(reserve(ledger, 1))
    with Ledger(place.where, signer=SIGNER) as ledger:
        assert ledger.signed_head() is None
        reserve(ledger, 2)
        report = ledger.verify(trusted_key=SIGNER.public_key)
        assert (report.entries, report.signatures, report.signed_from) == (3, 1, 3)
    with Ledger(place.where) as ledger, pytest.raises(LedgerError, match="no signer was given"):
        reserve(ledger, 3)


def test_nobody_signs_first_what_does_not_fit(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        reserve(ledger, 1, "a")
        reserve(ledger, 2, "b")
    place.damage("UPDATE spent SET count = 0 WHERE subject = 'a'")
    with Ledger(place.where, signer=SIGNER) as ledger:
        with pytest.raises(LedgerTampered, match="the sums of subject='a'"):
            reserve(ledger, 3, "c")
        assert ledger.signed_head() is None
        assert ledger.head().seq == 2


def rewrite(
    ledger: Ledger, place: Place, change: Callable[[list[Entry]], list[Entry]]
) -> list[ChainedEntry]:
    """Change entries and compute all hashes again, as someone would who has no key."""
    entries = change([link.entry for link in chain_of(ledger)])
    place.damage("DELETE FROM entries")
    links, previous = [], GENESIS
    for seq, entry in enumerate(entries, start=1):
        digest = entry_hash(seq, previous, entry)
        links.append(ChainedEntry(seq=seq, prev_hash=previous, hash=digest, entry=entry))
        previous = digest
    with ledger._store.transaction() as db:
        marks = ", ".join("?" * (3 + len(ENTRY_FIELDS)))
        names = ", ".join(("seq", "prev_hash", "hash", *ENTRY_FIELDS))
        db.executemany(
            f"INSERT INTO entries ({names}) VALUES ({marks})",  # noqa: S608
            [(link.seq, link.prev_hash, link.hash, *link.entry.values()) for link in links],
        )
    return links


def sign_again(
    ledger: Ledger, place: Place, links: list[ChainedEntry], signer: LedgerSigner, *, start: int
) -> None:
    """Sign anew, with any key, the heads from some entry on."""
    old = [head for head in heads_of(ledger) if head.seq >= start]
    place.damage(f"DELETE FROM heads WHERE seq >= {start}")  # noqa: S608
    with ledger._store.transaction() as db:
        for head in old:
            new = signer.sign(Head(seq=head.seq, hash=links[head.seq - 1].hash))
            row = (new.seq, new.hash, new.public_key, new.signature)
            db.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", row)


def edited(entries: list[Entry]) -> list[Entry]:
    return [*entries[:3], replace(entries[3], time="2001-01-01T00:00:00+00:00"), *entries[4:]]


def swapped(entries: list[Entry]) -> list[Entry]:
    return [entries[1], entries[0], *entries[2:]]


def without_last(entries: list[Entry]) -> list[Entry]:
    return entries[:6]


def with_more(entries: list[Entry]) -> list[Entry]:
    return [*entries, replace(entries[0], subject="c", reservation=9, server_round=9)]


def inserted(entries: list[Entry]) -> list[Entry]:
    return [*entries[:4], replace(entries[3], subject="c"), *entries[4:]]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (edited, r"entry 5 is not the one that was signed; entries 4 to 5 hold one"),
        (swapped, r"entry 2 is not the one that was signed; entries 1 to 2 hold one"),
        (without_last, r"entry 7 is missing: the head at entry 8 was signed"),
        (with_more, r"entry 9 is not covered by a signature"),
        (inserted, r"entry 5 is not the one that was signed; entries 4 to 5 hold one"),
    ],
)
def test_a_change_with_all_hashes_made_anew_is_found_by_signatures(
    signed: Ledger, place: Place, change: Callable[[list[Entry]], list[Entry]], finding: str
) -> None:
    rewrite(signed, place, change)
    with pytest.raises(LedgerTampered, match=finding):
        signed.verify()
    with pytest.raises(LedgerTampered), Ledger(place.where, signer=SIGNER) as ledger:
        ledger.verify(trusted_key=SIGNER.public_key)


@pytest.mark.parametrize("change", [without_last, with_more, edited, inserted])
def test_nothing_is_added_to_a_chain_that_does_not_end_where_it_was_signed(
    signed: Ledger, place: Place, change: Callable[[list[Entry]], list[Entry]]
) -> None:
    rewrite(signed, place, change)
    with pytest.raises(LedgerTampered, match=r"entry \d"):
        reserve(signed, 9, "c")


def test_heads_signed_with_another_key_from_some_entry_on_are_found(
    signed: Ledger, place: Place
) -> None:
    links = rewrite(signed, place, edited)
    sign_again(signed, place, links, OTHER, start=5)
    finding = f"entry 5 is not signed as it should be: head 5 .* key {OTHER.public_key[:12]}"
    for key in (None, SIGNER.public_key):
        with pytest.raises(LedgerTampered, match=finding):
            signed.verify(trusted_key=key)


def test_a_ledger_signed_anew_throughout_is_found_by_who_knows_the_key(
    signed: Ledger, place: Place
) -> None:
    anchor = signed.signed_head()
    assert anchor is not None
    links = rewrite(signed, place, edited)
    sign_again(signed, place, links, OTHER, start=1)
    assert signed.verify().public_key == OTHER.public_key
    with pytest.raises(LedgerTampered, match="entry 2 is not signed as it should be"):
        signed.verify(trusted_key=SIGNER.public_key)
    with pytest.raises(LedgerTampered, match="entry 2 is not signed as it should be"):
        signed.verify(anchor)
    with pytest.raises(LedgerTampered, match="entry 8 is not the one that was seen before"):
        signed.verify(anchor.head)


def test_signatures_that_were_stripped_are_missed_by_who_knows_the_key(
    signed: Ledger, place: Place
) -> None:
    anchor = signed.signed_head()
    place.damage("DELETE FROM heads")
    assert signed.verify().signatures == 0
    for seen, key in ((None, SIGNER.public_key), (anchor, None)):
        with pytest.raises(LedgerTampered, match="entry 1 is not covered by a signature"):
            signed.verify(seen, trusted_key=key)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE heads SET signature = hash || hash WHERE seq = 5", "entry 5 is not signed"),
        ("UPDATE heads SET signature = 'x' WHERE seq = 3", "entry 3 is not signed"),
        ("UPDATE heads SET hash = public_key WHERE seq = 6", "entry 6 is not signed"),
        ("UPDATE heads SET seq = 7 WHERE seq = 8", "entry 7 is not signed"),
        ("UPDATE heads SET seq = 0 WHERE seq = 2", "entry 0 is not signed"),
        ("UPDATE heads SET public_key = '' WHERE seq = 2", "entry 2 is not signed"),
        ("DELETE FROM heads WHERE seq = 8", "entry 7 is not covered by a signature"),
        ("DELETE FROM entries WHERE seq = 8", "entry 8 is missing: the head at entry 8"),
        ("DELETE FROM entries", "entry 1 is missing: the head at entry 2"),
        ("UPDATE entries SET subject = 'x' WHERE seq = 4", "entry 4 does not have its hash"),
        ("UPDATE spent SET count = 1", "sums of"),
        ("UPDATE plans SET json = replace(json, '6', '7')", "does not have its digest"),
    ],
)
def test_an_edited_signature_or_row_is_found_and_named(
    signed: Ledger, place: Place, statement: str, finding: str
) -> None:
    place.damage(statement)
    with pytest.raises(LedgerTampered, match=finding):
        signed.verify()


def test_an_anchor_with_a_bad_signature_anchors_nothing(signed: Ledger) -> None:
    head = signed.signed_head()
    assert head is not None
    with pytest.raises(LedgerTampered, match="valid signature"):
        signed.verify(replace(head, seq=7))
    with pytest.raises(LedgerTampered, match="expected"):
        signed.verify(head, trusted_key=OTHER.public_key)


def test_an_old_copy_put_back_is_found_through_a_later_head(tmp_path: Path) -> None:
    place = sqlite_place(tmp_path)
    with Ledger(place.where, signer=SIGNER) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        ledger.commit(reserve(ledger, 1))
    shutil.copy(place.where, tmp_path / "copy")
    with Ledger(place.where, signer=SIGNER) as ledger:
        ledger.commit(reserve(ledger, 2))
        seen = ledger.signed_head()
    shutil.copy(tmp_path / "copy", place.where)
    with Ledger(place.where, signer=SIGNER) as ledger:
        assert ledger.verify(trusted_key=SIGNER.public_key).entries == 2
        with pytest.raises(LedgerTampered, match="entry 3 is missing: a head at entry 4 was seen"):
            ledger.verify(seen)
        ledger.commit(reserve(ledger, 7))
        with pytest.raises(LedgerTampered, match="entry 4 is not the one that was seen before"):
            ledger.verify(seen)


def test_signatures_cannot_be_changed_by_accident(signed: Ledger) -> None:
    for statement in ("UPDATE heads SET seq = 9", "DELETE FROM heads"):
        with (
            pytest.raises(LedgerError, match="heads are append-only"),
            signed._store.transaction() as db,
        ):
            db.execute(statement)
    signed.verify()
