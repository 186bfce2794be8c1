"""What a ledger stores, whatever it is stored in: an append-only hash chain and its head.

``entries`` is the truth. ``reservations``, ``subjects`` and ``spent`` are kept beside it so that a
query does not replay history, and :mod:`shared.privacy.ledger_verify` rebuilds them to compare.
All other modules speak one SQL to a :class:`Db`; what differs between SQLite and PostgreSQL is in
:mod:`shared.privacy.ledger_schema` and in the two stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Protocol

from shared.canonical import canonical_json, sha256_hex

GENESIS = "0" * 64
# Rows of the chain that are read at a time: a ledger may be larger than memory.
_PAGE = 5000


class Rows(Protocol):
    """The rows of one query."""

    def fetchone(self) -> Any:  # noqa: ANN401  (a row of any columns, or None)
        """Return the next row, or ``None``."""
        ...

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rows."""
        ...


class Db(Protocol):
    """A connection inside one transaction."""

    @property
    def among(self) -> str:
        """Return a sub-select of the texts in a JSON array, which is its one parameter."""
        ...

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        """Run one statement; ``?`` marks a parameter."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        ...


class Store(Protocol):
    """Where a ledger is; safe to use from several threads and processes."""

    def transaction(self) -> AbstractContextManager[Db]:
        """Run one exclusive transaction: all of it is on the disk afterwards, or none of it.

        Raises:
            LedgerError: if the store is damaged, read-only, unreachable, or locked for longer than
                a minute. If a connection was lost while the transaction was being committed,
                nobody knows whether it was: count it as charged.
            OutOfDisk: if no space is left; nothing was written.
        """
        ...

    def snapshot(self) -> AbstractContextManager[Db]:
        """Run several reads on one consistent state, without blocking writers."""
        ...

    def close(self) -> None:
        """Close the store; the ledger cannot be used afterwards."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the chain.

    Attributes:
        time: UTC, ISO 8601.
        state: ``"reserved"`` (one row per subject), ``"committed"`` or ``"abandoned"`` (one row
            for the whole reservation, ``subject`` is ``None``), or ``"note"``
            (:mod:`shared.privacy.ledger_notes`).
        reservation: number of the reservation that the row belongs to; 0 for a note.
        run_id: the run that asked.
        server_round: its round.
        attempt: 1 for the first reservation of this round, then 2, ...
        subject: whose budget is charged.
        scope: which of the subject's data.
        plan_digest: the plan that the event belongs to; empty for a note.
        event: canonical JSON of the event, or of what is noted.
        idempotency_key: what the caller gave, or ``None``.
    """

    time: str
    state: str
    reservation: int
    run_id: str
    server_round: int
    attempt: int
    subject: str | None
    scope: str
    plan_digest: str
    event: str
    idempotency_key: str | None

    def values(self) -> tuple[object, ...]:
        """Return the fields in the order of the table's columns."""
        return tuple(getattr(self, name) for name in ENTRY_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of a chain: keep it elsewhere to notice later that the tail was cut off."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainedEntry:
    """A row with its place in the chain."""

    seq: int
    prev_hash: str
    hash: str
    entry: Entry


ENTRY_FIELDS = tuple(field.name for field in fields(Entry))
_COLUMNS = ", ".join(ENTRY_FIELDS)
_MARKS = ", ".join("?" for _ in ENTRY_FIELDS)


def append(db: Db, entries: Iterable[Entry]) -> Head:
    """Append rows to the chain.

    Args:
        db: a connection inside :meth:`Store.transaction`.
        entries: the rows, in order.

    Returns:
        The new head.
    """
    head = head_of(db)
    seq, last = head.seq, head.hash
    rows: list[tuple[object, ...]] = []
    for entry in entries:
        seq, previous = seq + 1, last
        last = entry_hash(seq, previous, entry)
        rows.append((seq, previous, last, *entry.values()))
    db.executemany(
        f"INSERT INTO entries (seq, prev_hash, hash, {_COLUMNS}) VALUES (?, ?, ?, {_MARKS})",  # noqa: S608
        rows,
    )
    return Head(seq=seq, hash=last)


def head_of(db: Db) -> Head:
    """Return the end of the chain; ``seq`` is 0 for an empty ledger."""
    row = db.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
    return Head(seq=row[0], hash=row[1]) if row else Head(seq=0, hash=GENESIS)


def read_chain(db: Db) -> Iterator[ChainedEntry]:
    """Yield every row in order, a page in memory at a time."""
    query = f"SELECT seq, prev_hash, hash, {_COLUMNS} FROM entries"  # noqa: S608
    page = db.execute(f"{query} ORDER BY seq LIMIT {_PAGE}").fetchall()
    while page:
        for seq, previous, digest, *values in page:
            entry = Entry(**dict(zip(ENTRY_FIELDS, values, strict=True)))
            yield ChainedEntry(seq=seq, prev_hash=previous, hash=digest, entry=entry)
        page = db.execute(
            f"{query} WHERE seq > ? ORDER BY seq LIMIT {_PAGE}", (page[-1][0],)
        ).fetchall()


def entry_hash(seq: int, prev_hash: str, entry: Entry) -> str:
    """Return the hash of a row: it covers every field and the hash of the row before."""
    values = dict(zip(ENTRY_FIELDS, entry.values(), strict=True))
    return sha256_hex(canonical_json({"seq": seq, "prev_hash": prev_hash, **values}))


def subjects_digest(subjects: Sequence[str]) -> str:
    """Return the digest of a set of subjects."""
    return sha256_hex(canonical_json(sorted(subjects)))
