"""Recomputes a ledger from its entries and finds the first thing that does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared.canonical import sha256_hex
from shared.errors import InvalidValue, LedgerConflict, LedgerTampered, SchemaMismatch
from shared.privacy.events import Composition, event_from_json
from shared.privacy.ledger_heads import RESTORE, SignatureCheck, bad_entry
from shared.privacy.ledger_notes import NOTE, NoteCheck
from shared.privacy.ledger_signing import SignedHead, verify_head
from shared.privacy.ledger_state import Account, Terms, terms_row
from shared.privacy.ledger_store import (
    GENESIS,
    ChainedEntry,
    Db,
    Entry,
    Head,
    entry_hash,
    read_chain,
    subjects_digest,
)
from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What a verification covered.

    Attributes:
        entries: rows of the chain.
        subjects: pairs of subject and scope.
        reservations: how many there are.
        open_reservations: neither committed nor abandoned; they count in full.
        head: the end of the chain.
        anchored: whether an earlier head was given and found on the chain.
        public_key: the key that every signature was made with; ``None`` without signatures.
        signatures: signed heads, the last of them at the end of the chain.
        signed_from: entry of the first signature. What comes before it was taken over by whoever
            signed first, after a verification without signatures.
        notes: entries that charge nobody.
    """

    entries: int
    subjects: int
    reservations: int
    open_reservations: int
    head: Head
    anchored: bool
    public_key: str | None = None
    signatures: int = 0
    signed_from: int | None = None
    notes: int = 0


def verify(
    db: Db, anchor: Head | SignedHead | None = None, trusted_key: str | None = None
) -> LedgerReport:
    """Recompute chain, signatures, plans, and the state kept beside the chain.

    Args:
        db: a connection inside one transaction.
        anchor: a head seen earlier, or ``None``. A signed one also says which key to expect.
        trusted_key: the key that must have signed the whole chain, or ``None``.

    Returns:
        What was checked.

    Raises:
        LedgerTampered: naming the first entry, plan or subject that does not fit.
        UnsupportedEvent: if a stored event cannot be accounted for.
    """
    if isinstance(anchor, SignedHead):
        verify_head(anchor, trusted=trusted_key)
        trusted_key, anchor = anchor.public_key, anchor.head
    state = _Replay(dict(_checked_plans(db)))
    runs = set(db.execute("SELECT run_id, digest, scope FROM runs"))
    signatures = SignatureCheck(db, trusted_key)
    notes = NoteCheck({run_id: scope for run_id, _, scope in runs})
    head = Head(seq=0, hash=GENESIS)
    for link in _checked_chain(db):
        head = Head(seq=link.seq, hash=link.hash)
        if anchor is not None and anchor.seq == link.seq and anchor != head:
            bad_entry(link.seq, "is not the one that was seen before")
        signatures.follow(link)
        if link.entry.state == NOTE:
            notes.follow(link)
            continue
        if (link.entry.run_id, link.entry.plan_digest, link.entry.scope) not in runs:
            bad_entry(link.seq, "belongs to no registered run and scope")
        state.add(link)
    if anchor is not None and anchor.seq > head.seq:
        bad_entry(head.seq + 1, f"is missing: a head at entry {anchor.seq} was seen before")
    signatures.finish(head)
    state.compare(db)
    return LedgerReport(
        entries=head.seq,
        subjects=len(state.accounts),
        reservations=len(state.reservations),
        open_reservations=len(state.open),
        head=head,
        anchored=anchor is not None,
        public_key=signatures.key if signatures.count else None,
        signatures=signatures.count,
        signed_from=signatures.first,
        notes=notes.count,
    )


def _checked_plans(db: Db) -> Iterator[tuple[str, PrivacyPlan]]:
    """Yield plans whose text has the digest that it is stored under."""
    for digest, text in db.execute("SELECT digest, json FROM plans ORDER BY digest"):
        try:
            plan = PrivacyPlan.from_json(text)
        except (InvalidValue, SchemaMismatch) as error:
            msg = f"plan {digest[:12]} cannot be read."
            raise LedgerTampered(msg, hint=RESTORE) from error
        if sha256_hex(text) != digest:
            msg = f"plan {digest[:12]} does not have its digest."
            raise LedgerTampered(msg, hint=RESTORE)
        yield digest, plan


def _checked_chain(db: Db) -> Iterator[ChainedEntry]:
    """Yield entries that follow on one another and have their hash."""
    previous = Head(seq=0, hash=GENESIS)
    for link in read_chain(db):
        if link.seq != previous.seq + 1:
            bad_entry(previous.seq + 1, "is missing")
        if link.prev_hash != previous.hash:
            bad_entry(link.seq, "does not follow the entry before it")
        if link.hash != entry_hash(link.seq, link.prev_hash, link.entry):
            bad_entry(link.seq, "does not have its hash")
        yield link
        previous = Head(seq=link.seq, hash=link.hash)


class _Replay:
    """The state that the entries lead to."""

    def __init__(self, plans: dict[str, PrivacyPlan]) -> None:
        self._plans = plans
        self._charged: set[tuple[str, str, str]] = set()
        self.open: dict[int, list[str]] = {}
        self.accounts: dict[tuple[str, str], Account] = {}
        self.sums: Counter[tuple[str, str, str, str]] = Counter()
        self.reservations: dict[int, tuple[object, ...]] = {}

    def add(self, link: ChainedEntry) -> None:
        """Apply one entry."""
        entry = link.entry
        if entry.plan_digest not in self._plans:
            bad_entry(link.seq, "belongs to a plan that is missing")
        if entry.state == "reserved" and entry.subject is not None:
            try:
                self._reserve(link.seq, entry, entry.subject)
            except LedgerConflict as error:
                bad_entry(link.seq, f"contradicts an earlier one: {error.message}")
        elif entry.reservation in self.open and entry.state in {"committed", "abandoned"}:
            self._close(link.seq, entry)
        else:
            bad_entry(link.seq, "neither reserves nor closes a reservation")

    def _reserve(self, seq: int, entry: Entry, subject: str) -> None:
        """Charge one subject."""
        key = (subject, entry.scope)
        if (*key, entry.plan_digest) not in self._charged:
            plan, known = self._plans[entry.plan_digest], self.accounts.get(key)
            fresh = Account(subject=subject, scope=entry.scope, terms=Terms.of(plan))
            self.accounts[key] = fresh if known is None else known.under(plan)
            self._charged.add((*key, entry.plan_digest))
        names = self.open.get(entry.reservation)
        if names is None:
            self._start(seq, entry)
            names = self.open[entry.reservation]
        elif self.reservations[entry.reservation] != _row(entry):
            bad_entry(seq, "does not belong to its reservation")
        names.append(subject)
        self._count(entry, [subject], 1)

    def _start(self, seq: int, entry: Entry) -> None:
        """Open a reservation, whose number must be new."""
        if entry.reservation in self.reservations:
            bad_entry(seq, "adds to a reservation that was closed")
        self.reservations[entry.reservation] = _row(entry)
        self.open[entry.reservation] = []

    def _close(self, seq: int, entry: Entry) -> None:
        """Commit or abandon a reservation."""
        if self.reservations[entry.reservation][:-1] != _row(entry)[:-1]:
            bad_entry(seq, "does not belong to its reservation")
        names = self.open.pop(entry.reservation)
        if entry.state == "abandoned":
            self._count(entry, names, -1)
        self.reservations[entry.reservation] = _row(entry, names)

    def _count(self, entry: Entry, names: list[str], sign: int) -> None:
        """Add a composition to subjects' sums, or take it back."""
        for release, count in _counts(entry.event):
            for name in names:
                self.sums[name, entry.scope, entry.plan_digest, release] += sign * count

    def compare(self, db: Db) -> None:
        """Require that the tables beside the chain say what the chain says."""
        query = "SELECT subject, scope, plan_digest, release, count FROM spent"
        kept = {row[:4]: row[4] for row in db.execute(query)}
        due = {key: count for key, count in self.sums.items() if count}
        for subject, scope, *_ in _different(kept, due):
            msg = f"the sums of subject={subject!r}, scope={scope!r} are not those of the entries."
            raise LedgerTampered(msg, hint=RESTORE)
        terms = {row[:2]: tuple(row) for row in db.execute("SELECT * FROM subjects")}
        expected = {key: terms_row(account) for key, account in self.accounts.items()}
        for subject, scope in _different(terms, expected):
            msg = f"the terms of subject={subject!r}, scope={scope!r} are not those of its plans."
            raise LedgerTampered(msg, hint=RESTORE)
        for number, names in self.open.items():
            row = self.reservations[number]
            self.reservations[number] = (*row[:7], subjects_digest(names), *row[8:])
        rows = {row[0]: tuple(row) for row in db.execute("SELECT * FROM reservations")}
        for number in _different(rows, self.reservations):
            msg = f"reservation {number} is not the one of the entries."
            raise LedgerTampered(msg, hint=RESTORE)


def _row(entry: Entry, names: list[str] | None = None) -> tuple[object, ...]:
    """Return a reservation's row as the table should have it; the digest once it is known."""
    return (
        entry.reservation,
        entry.run_id,
        entry.server_round,
        entry.attempt,
        entry.scope,
        entry.plan_digest,
        entry.event,
        None if names is None else subjects_digest(names),
        entry.idempotency_key,
        entry.state,
    )


@lru_cache(maxsize=4096)
def _counts(event: str) -> tuple[tuple[str, int], ...]:
    """Read a stored event once."""
    return Composition.of(event_from_json(event)).counts()


def _different(found: Mapping[Any, object], due: Mapping[Any, object]) -> list[Any]:
    """Return the keys whose values differ, ascending."""
    return sorted(key for key in found.keys() | due.keys() if found.get(key) != due.get(key))
