"""The device's own notes beside its ledger: which rounds it answered, which server heads it saw.

One small SQLite file. Every write is one immediate transaction that is on the disk when it returns.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from shared.errors import LedgerError, OutOfDisk
from shared.sqlitefile import write_ahead

SCHEMA_VERSION = 1
_BUSY_SECONDS = 60.0
_SCHEMA = (
    """CREATE TABLE answers (
        run_id TEXT NOT NULL, server_round INTEGER NOT NULL, plan_digest TEXT NOT NULL,
        request TEXT NOT NULL, empty INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX answer_of_run ON answers (run_id, server_round)",
    """CREATE TABLE heads (
        public_key TEXT PRIMARY KEY, seq INTEGER NOT NULL, hash TEXT NOT NULL,
        place INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE own_head (
        id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL
    ) STRICT""",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A round that the device answered, or was about to.

    Attributes:
        run_id: the server's name of the run.
        server_round: its round.
        plan_digest: the plan that the round ran under.
        request: digest of what was asked.
        empty: whether an empty update was asked for, which no record touches and nothing pays for.
    """

    run_id: str
    server_round: int
    plan_digest: str
    request: str
    empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenHead:
    """The last head that one server key signed."""

    public_key: str
    seq: int
    hash: str


class DeviceStore:
    """One open file of notes; safe to use from several processes.

    Args:
        path: the file; created with mode 600 if it does not exist.

    Raises:
        LedgerError: if it cannot be opened or is of another version.
        OutOfDisk: if there is no space to create it.
    """

    def __init__(self, path: Path) -> None:
        with _translated():
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the only write lock: all of what is written inside is kept, or none of it.

        Raises:
            LedgerError: if the file is damaged, read-only, or locked for longer than a minute.
            OutOfDisk: if no space is left.
        """
        with _translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise

    def answers(self, run_id: str) -> tuple[Answer, ...]:
        """Return the answers of a run, by round."""
        query = (
            "SELECT server_round, plan_digest, request, empty FROM answers WHERE run_id = ? "
            "ORDER BY server_round"
        )
        with _translated():
            rows = self._db.execute(query, (run_id,)).fetchall()
        return tuple(
            Answer(
                run_id=run_id,
                server_round=number,
                plan_digest=plan,
                request=request,
                empty=bool(empty),
            )
            for number, plan, request, empty in rows
        )

    def add_answer(self, answer: Answer) -> None:
        """Note a round as answered; inside a transaction."""
        row = astuple(answer)
        self._db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", row)

    def heads(self) -> tuple[SeenHead, ...]:
        """Return the last head of every server key; the key that was seen last comes last."""
        with _translated():
            rows = self._db.execute("SELECT public_key, seq, hash FROM heads ORDER BY place")
            return tuple(SeenHead(public_key=key, seq=seq, hash=h) for key, seq, h in rows)

    def keep_head(self, head: SeenHead) -> None:
        """Keep a key's newest head; inside a transaction."""
        self._db.execute(
            "INSERT OR REPLACE INTO heads VALUES "
            "(?, ?, ?, (SELECT coalesce(max(place), 0) + 1 FROM heads))",
            (head.public_key, head.seq, head.hash),
        )

    def own_head(self) -> tuple[int, str] | None:
        """Return where the device's own ledger ended when it was last written."""
        with _translated():
            row = self._db.execute("SELECT seq, hash FROM own_head").fetchone()
        return None if row is None else (row[0], row[1])

    def keep_own_head(self, seq: int, digest: str) -> None:
        """Keep where the device's own ledger ends; inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO own_head VALUES (1, ?, ?)", (seq, digest))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _prepare(self) -> None:
        """Set durability and create or check the tables."""
        write_ahead(self._db, _BUSY_SECONDS)
        self._db.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and tables == 0:
                for statement in _SCHEMA:
                    self._db.execute(statement)
            elif version != SCHEMA_VERSION:
                msg = f"device state schema={version}, expected {SCHEMA_VERSION}."
                raise LedgerError(msg, hint="Another program or a newer fedslm wrote this file.")


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into ours."""
    try:
        yield
    except sqlite3.Error as error:
        if "disk is full" in str(error) or "disk I/O error" in str(error):
            msg = f"the device state could not be written: {error}."
            raise OutOfDisk(msg, hint="Free some space; nothing was lost.") from error
        msg = f"the device state cannot be used: {error}."
        raise LedgerError(msg, hint="It may be locked or damaged; restore a copy.") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            msg = f"the device state could not be created: {error.strerror}."
            raise OutOfDisk(msg, hint="Free some space.") from error
        msg = f"the device state cannot be opened: {error.strerror}."
        raise LedgerError(msg, hint="Check that its folder can be written.") from error
