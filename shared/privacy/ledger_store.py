"""The ledger's file: SQLite, one append-only hash chain, and state derived from it.

Every write is one immediate transaction that is on the disk when it returns (WAL, synchronous
FULL). ``entries`` is the truth; ``reservations``, ``subjects`` and ``spent`` are kept beside it so
that a query does not replay history, and :func:`replay` rebuilds them to compare.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from shared.canonical import canonical_json, sha256_hex
from shared.errors import LedgerError, OutOfDisk

SCHEMA_VERSION = 1
GENESIS = "0" * 64
BUSY_SECONDS = 60.0

_SCHEMA = f"""
CREATE TABLE plans (digest TEXT PRIMARY KEY, json TEXT NOT NULL) STRICT;
CREATE TABLE runs (
    run_id TEXT NOT NULL, digest TEXT NOT NULL, scope TEXT NOT NULL, PRIMARY KEY (run_id, digest)
) STRICT;
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, hash TEXT NOT NULL, time TEXT NOT NULL,
    state TEXT NOT NULL, reservation INTEGER NOT NULL, run_id TEXT NOT NULL,
    server_round INTEGER NOT NULL, attempt INTEGER NOT NULL, subject TEXT, scope TEXT NOT NULL,
    plan_digest TEXT NOT NULL, event TEXT NOT NULL, idempotency_key TEXT
) STRICT;
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY, run_id TEXT NOT NULL, server_round INTEGER NOT NULL,
    attempt INTEGER NOT NULL, scope TEXT NOT NULL, plan_digest TEXT NOT NULL, event TEXT NOT NULL,
    subjects_digest TEXT NOT NULL, idempotency_key TEXT, state TEXT NOT NULL
) STRICT;
CREATE INDEX reservation_of_round ON reservations (run_id, server_round);
CREATE INDEX entry_of_reservation ON entries (reservation);
CREATE TABLE subjects (
    subject TEXT NOT NULL, scope TEXT NOT NULL, unit TEXT, relation TEXT, delta REAL, cap REAL,
    filter_order REAL, PRIMARY KEY (subject, scope)
) STRICT, WITHOUT ROWID;
CREATE TABLE spent (
    subject TEXT NOT NULL, scope TEXT NOT NULL, plan_digest TEXT NOT NULL,
    q REAL NOT NULL, z REAL NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (subject, scope, plan_digest, q, z)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER entries_keep BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
PRAGMA user_version = {SCHEMA_VERSION};
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the chain.

    Attributes:
        time: UTC, ISO 8601.
        state: ``"reserved"`` (one row per subject), ``"committed"`` or ``"abandoned"`` (one row
            for the whole reservation, ``subject`` is ``None``).
        reservation: number of the reservation that the row belongs to.
        run_id: the run that asked.
        server_round: its round.
        attempt: 1 for the first reservation of this round, then 2, ...
        subject: whose budget is charged.
        scope: which of the subject's data.
        plan_digest: the plan that the event belongs to.
        event: canonical JSON of the event.
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


class LedgerStore:
    """One open ledger file; safe to use from several threads and processes.

    Args:
        path: the file; created with mode 600 if it does not exist.

    Raises:
        LedgerError: if the file cannot be opened, is not a ledger, or is of a newer version.
        OutOfDisk: if there is no space to create it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._path = path
        with translated_errors():
            if not path.exists():
                _create_privately(path)
            self._db = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        """Set durability and create or check the schema."""
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self.transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                for statement in _statements(_SCHEMA):
                    db.execute(statement)
            elif version != SCHEMA_VERSION:
                msg = f"ledger schema={version}, expected {SCHEMA_VERSION}."
                raise LedgerError(msg, hint="Another program or a newer fedslm wrote this file.")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one immediate transaction: all of it is on the disk afterwards, or none of it.

        Raises:
            LedgerError: if the file is damaged, read-only, or locked for longer than a minute.
            OutOfDisk: if no space is left; nothing was written.
        """
        with self._lock, translated_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Run several reads on one consistent state, without blocking writers."""
        with self._lock, translated_errors():
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.rollback()

    def close(self) -> None:
        """Close the file; the ledger cannot be used afterwards."""
        with self._lock:
            self._db.close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into the ledger's own.

    Raises:
        OutOfDisk: if no space is left.
        LedgerError: for everything else.
    """
    try:
        yield
    except sqlite3.Error as error:
        if "disk is full" in str(error) or "disk I/O error" in str(error):
            msg = f"the ledger could not be written: {error}."
            raise OutOfDisk(msg, hint="Free some space and resume; nothing was lost.") from error
        msg = f"the ledger cannot be used: {error}."
        hint = "It may be locked, damaged, or not a ledger; restore it from a copy."
        raise LedgerError(msg, hint=hint) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            msg = f"the ledger could not be created: {error.strerror}."
            raise OutOfDisk(msg, hint="Free some space and resume.") from error
        msg = f"the ledger cannot be opened: {error.strerror}."
        raise LedgerError(msg, hint="Check that its folder exists and can be written.") from error


def append(db: sqlite3.Connection, entries: Iterable[Entry]) -> Head:
    """Append rows to the chain, inside a transaction.

    Args:
        db: a connection inside :meth:`LedgerStore.transaction`.
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
        rows.append((seq, previous, last, *asdict(entry).values()))
    db.executemany(
        f"INSERT INTO entries (seq, prev_hash, hash, {_COLUMNS}) VALUES (?, ?, ?, {_MARKS})",  # noqa: S608
        rows,
    )
    return Head(seq=seq, hash=last)


def head_of(db: sqlite3.Connection) -> Head:
    """Return the end of the chain; ``seq`` is 0 for an empty ledger."""
    row = db.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
    return Head(seq=row[0], hash=row[1]) if row else Head(seq=0, hash=GENESIS)


def read_chain(db: sqlite3.Connection) -> Iterator[ChainedEntry]:
    """Yield every row in order."""
    rows = db.execute(f"SELECT seq, prev_hash, hash, {_COLUMNS} FROM entries ORDER BY seq")  # noqa: S608
    for seq, previous, digest, *values in rows:
        entry = Entry(**dict(zip(ENTRY_FIELDS, values, strict=True)))
        yield ChainedEntry(seq=seq, prev_hash=previous, hash=digest, entry=entry)


def entry_hash(seq: int, prev_hash: str, entry: Entry) -> str:
    """Return the hash of a row: it covers every field and the hash of the row before."""
    return sha256_hex(canonical_json({"seq": seq, "prev_hash": prev_hash, **asdict(entry)}))


def subjects_digest(subjects: Sequence[str]) -> str:
    """Return the digest of a set of subjects."""
    return sha256_hex(canonical_json(sorted(subjects)))


def _create_privately(path: Path) -> None:
    """Create an empty file that only its owner can read, and make its name durable."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements (``executescript`` would end our transaction)."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
