"""Recomputes a ledger from its entries and finds the first thing that does not fit."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from shared.canonical import sha256_hex
from shared.errors import InvalidValue, LedgerConflict, LedgerTampered, SchemaMismatch
from shared.privacy.events import Composition, event_from_json
from shared.privacy.ledger_state import Account, Terms, charge_rows, terms_row
from shared.privacy.ledger_store import (
    GENESIS,
    ChainedEntry,
    Entry,
    Head,
    entry_hash,
    read_chain,
    subjects_digest,
)
from shared.privacy.plan import PrivacyPlan

_RESTORE = "Restore the ledger from a copy; until then count its subjects' budgets as exhausted."


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
    """

    entries: int
    subjects: int
    reservations: int
    open_reservations: int
    head: Head
    anchored: bool


def verify(db: sqlite3.Connection, anchor: Head | None) -> LedgerReport:
    """Recompute chain, plans, and the state kept beside the chain.

    Args:
        db: a connection inside one transaction.
        anchor: a head seen earlier, or ``None``.

    Returns:
        What was checked.

    Raises:
        LedgerTampered: naming the first entry, plan or subject that does not fit.
        UnsupportedEvent: if a stored event cannot be accounted for.
    """
    plans = dict(_checked_plans(db))
    chain = list(_checked_chain(db))
    head = Head(seq=chain[-1].seq, hash=chain[-1].hash) if chain else Head(seq=0, hash=GENESIS)
    if anchor is not None:
        _require_anchor(chain, anchor)
    state = _Replay(plans)
    runs = set(db.execute("SELECT run_id, digest, scope FROM runs"))
    for link in chain:
        if (link.entry.run_id, link.entry.plan_digest, link.entry.scope) not in runs:
            _tampered(link.seq, "belongs to no registered run and scope")
        state.add(link)
    _compare(db, state)
    open_ones = sum(row[-1] == "reserved" for row in state.reservations.values())
    return LedgerReport(
        entries=len(chain),
        subjects=len(state.accounts),
        reservations=len(state.reservations),
        open_reservations=open_ones,
        head=head,
        anchored=anchor is not None,
    )


def _checked_plans(db: sqlite3.Connection) -> Iterator[tuple[str, PrivacyPlan]]:
    """Yield plans whose text has the digest that it is stored under."""
    for digest, text in db.execute("SELECT digest, json FROM plans ORDER BY digest"):
        try:
            plan = PrivacyPlan.from_json(text)
        except (InvalidValue, SchemaMismatch) as error:
            msg = f"plan {digest[:12]} cannot be read."
            raise LedgerTampered(msg, hint=_RESTORE) from error
        if sha256_hex(text) != digest:
            msg = f"plan {digest[:12]} does not have its digest."
            raise LedgerTampered(msg, hint=_RESTORE)
        yield digest, plan


def _checked_chain(db: sqlite3.Connection) -> Iterator[ChainedEntry]:
    """Yield entries that follow on one another and have their hash."""
    previous = Head(seq=0, hash=GENESIS)
    for link in read_chain(db):
        if link.seq != previous.seq + 1:
            _tampered(previous.seq + 1, "is missing")
        if link.prev_hash != previous.hash:
            _tampered(link.seq, "does not follow the entry before it")
        if link.hash != entry_hash(link.seq, link.prev_hash, link.entry):
            _tampered(link.seq, "does not have its hash")
        yield link
        previous = Head(seq=link.seq, hash=link.hash)


def _require_anchor(chain: list[ChainedEntry], anchor: Head) -> None:
    """Require that a head seen earlier is still part of the chain."""
    if anchor.seq > len(chain):
        _tampered(len(chain) + 1, f"is missing: a head at entry {anchor.seq} was seen before")
    if anchor.seq and chain[anchor.seq - 1].hash != anchor.hash:
        _tampered(anchor.seq, "is not the one that was seen before")


class _Replay:
    """The state that the entries lead to."""

    def __init__(self, plans: dict[str, PrivacyPlan]) -> None:
        self._plans = plans
        self._names: dict[int, list[str]] = {}
        self.accounts: dict[tuple[str, str], Account] = {}
        self.sums: Counter[tuple[str, str, str, float, float]] = Counter()
        self.reservations: dict[int, tuple[object, ...]] = {}

    def add(self, link: ChainedEntry) -> None:
        """Apply one entry."""
        entry = link.entry
        if entry.plan_digest not in self._plans:
            _tampered(link.seq, "belongs to a plan that is missing")
        charged = Composition.of(event_from_json(entry.event))
        if entry.state == "reserved" and entry.subject is not None:
            try:
                self._reserve(entry, entry.subject, charged)
            except LedgerConflict as error:
                _tampered(link.seq, f"contradicts an earlier one: {error.message}")
        elif entry.reservation in self._names and entry.state in {"committed", "abandoned"}:
            self._close(entry, charged)
        else:
            _tampered(link.seq, "neither reserves nor closes a reservation")

    def _reserve(self, entry: Entry, subject: str, charged: Composition) -> None:
        """Charge one subject."""
        plan, key = self._plans[entry.plan_digest], (subject, entry.scope)
        known = self.accounts.get(key)
        fresh = Account(subject=subject, scope=entry.scope, terms=Terms.of(plan))
        self.accounts[key] = fresh if known is None else known.under(plan)
        self._count(entry, [subject], charged, 1)
        names = self._names.setdefault(entry.reservation, [])
        names.append(subject)
        self._remember(entry, names)

    def _close(self, entry: Entry, charged: Composition) -> None:
        """Commit or abandon a reservation."""
        names = self._names[entry.reservation]
        if entry.state == "abandoned":
            self._count(entry, names, charged, -1)
        self._remember(entry, names)

    def _count(self, entry: Entry, names: list[str], charged: Composition, sign: int) -> None:
        """Add a composition to subjects' sums, or take it back."""
        for name in names:
            for q, z, count in charge_rows(charged):
                self.sums[name, entry.scope, entry.plan_digest, q, z] += sign * count

    def _remember(self, entry: Entry, names: list[str]) -> None:
        """Keep a reservation's row as the table should have it (subjects' digest last but two)."""
        self.reservations[entry.reservation] = (
            entry.reservation,
            entry.run_id,
            entry.server_round,
            entry.attempt,
            entry.scope,
            entry.plan_digest,
            entry.event,
            tuple(names),
            entry.idempotency_key,
            entry.state,
        )


def _compare(db: sqlite3.Connection, state: _Replay) -> None:
    """Require that the tables beside the chain say what the chain says."""
    kept = {row[:5]: row[5] for row in db.execute("SELECT * FROM spent")}
    due = {key: count for key, count in state.sums.items() if count}
    for key in sorted(kept.keys() | due.keys()):
        if kept.get(key) != due.get(key):
            msg = f"the sums of subject={key[0]!r}, scope={key[1]!r} are not those of the entries."
            raise LedgerTampered(msg, hint=_RESTORE)
    terms = {row[:2]: row for row in db.execute("SELECT * FROM subjects")}
    expected = {key: terms_row(account) for key, account in state.accounts.items()}
    for key in sorted(terms.keys() | expected.keys()):
        if terms.get(key) != expected.get(key):
            msg = f"the terms of subject={key[0]!r}, scope={key[1]!r} are not those of its plans."
            raise LedgerTampered(msg, hint=_RESTORE)
    rows = {row[0]: row for row in db.execute("SELECT * FROM reservations")}
    for number in sorted(rows.keys() | state.reservations.keys()):
        due_row = state.reservations.get(number)
        if due_row is not None:
            due_row = (*due_row[:7], subjects_digest(due_row[7]), *due_row[8:])  # type: ignore[arg-type]
        if rows.get(number) != due_row:
            msg = f"reservation {number} is not the one of the entries."
            raise LedgerTampered(msg, hint=_RESTORE)


def _tampered(seq: int, what: str) -> NoReturn:
    """Raise for one entry."""
    msg = f"entry {seq} {what}."
    raise LedgerTampered(msg, hint=_RESTORE)
