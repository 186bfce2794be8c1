"""A ledger in a PostgreSQL database, for servers that share one.

The chain is one sequence, so writers queue: a transaction first locks the one row of
``fedslm_ledger`` and then reads what is committed, so nothing it decides on can change under it and
nothing has to be retried. It is on the server's disk when it returns (``synchronous_commit``); a
server that does not sync (``fsync = off``) is refused. Reads are repeatable and block nobody.

The tables are created in the first schema of the connection's ``search_path``; two ledgers in one
database need two schemas, such as ``?options=-csearch_path%3Dname`` in the URL. Over a network, say
``sslmode=verify-full``. ``psycopg`` is imported on first use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shared.errors import LedgerError, MissingDependency, OutOfDisk
from shared.privacy.ledger_schema import SCHEMA_VERSION, postgres_schema

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

# Seconds: to reach a server, to wait for the lock, and that a silent holder may keep it.
CONNECT_SECONDS = 10
BUSY_SECONDS = 60
_SECRETS = ("password", "sslpassword")
# Taken while tables are created, when there is no row to lock yet.
_CREATING = 0x6665_6473_6C6D

_WRITE = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = on; "
    f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{BUSY_SECONDS}s'; "
)
_LOCK = "SELECT version FROM fedslm_ledger FOR UPDATE"
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresDb:
    """A connection to a server, inside one transaction."""

    among = "SELECT jsonb_array_elements_text(CAST(? AS jsonb))"

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> Cursor[Any]:
        """Run one statement; ``?`` marks a parameter."""
        return self._connection.execute(_marked(sql), parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        with self._connection.cursor() as cursor:
            cursor.executemany(_marked(sql), rows)


class PostgresStore:
    """One connection to a ledger's database; it is made anew when it was lost between calls.

    Args:
        url: ``postgresql://user@host/database``, with any of libpq's parameters.
        read_only: neither create nor change anything.

    Raises:
        MissingDependency: if psycopg is not installed.
        LedgerError: if the URL is not one, the server cannot be reached or does not sync, the
            database is not UTF-8, or the tables are another program's or of a newer version.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self._lock = threading.RLock()
        self._read_only = read_only
        self._psycopg = _driver()
        self._url, self._secrets = url, self._secrets_of(url)
        self._connection = self._connect()
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _secrets_of(self, url: str) -> tuple[str, ...]:
        """Read a URL; return what must never be shown."""
        try:
            parsed = self._psycopg.conninfo.conninfo_to_dict(url)
        except self._psycopg.ProgrammingError:
            msg = "the ledger's address is not a PostgreSQL URL that libpq can read."
            hint = "Write special characters of a password in percent form, such as %40 for @."
            raise LedgerError(msg, hint=hint) from None
        return tuple(str(parsed[key]) for key in _SECRETS if parsed.get(key))

    def _connect(self) -> Connection[Any]:
        """Open a connection on which transactions are left to us.

        Raises:
            LedgerError: if the server cannot be reached; it holds neither address nor password.
        """
        try:
            connection: Connection[Any] = self._psycopg.connect(
                self._url,
                autocommit=True,
                client_encoding="utf8",
                connect_timeout=CONNECT_SECONDS,
                fallback_application_name="fedslm",
            )
        except self._psycopg.Error as error:
            # "connection to server at ... failed: reason"; only the reason is nobody's secret.
            reason = str(error).split("failed: ")[-1].strip().split("\n")[0]
            msg = f"the ledger's PostgreSQL server cannot be used: {self._scrubbed(reason)}."
            hint = "Check the address, the server, and the user's rights."
            raise LedgerError(msg, hint=hint) from None
        return connection

    def _prepare(self) -> None:
        """Check the server, and create or check the tables; two servers may start at once."""
        for setting, due in (("fsync", "on"), ("server_encoding", "UTF8")):
            (found,) = self._row(f"SHOW {setting}")
            if found != due:
                msg = f"the PostgreSQL server has {setting}={found}, expected {due}."
                raise LedgerError(msg, hint="Keep the ledger in a database that is durable UTF-8.")
        if self._read_only:
            (table,) = self._row("SELECT to_regclass('fedslm_ledger')::text")
            if table is None:
                msg = "the PostgreSQL database holds no ledger."
                raise LedgerError(msg, hint="Open it without read_only to create one.")
            _require_version(self._row("SELECT version FROM fedslm_ledger"))
            return
        with self._rolled_back_on_error():
            self._connection.execute(f"{_WRITE}SELECT pg_advisory_xact_lock({_CREATING})")
            (table,) = self._row("SELECT to_regclass('fedslm_ledger')::text")
            if table is None:
                for statement in postgres_schema():
                    self._connection.execute(statement)
            _require_version(self._row("SELECT version FROM fedslm_ledger"))
            self._commit()

    @contextmanager
    def transaction(self) -> Iterator[PostgresDb]:
        """Run one exclusive transaction (see :class:`shared.privacy.ledger_store.Store`)."""
        if self._read_only:
            msg = "the ledger was opened for reading only."
            raise LedgerError(msg, hint="Open it without read_only to write.")
        with self._lock, self._translated(), self._rolled_back_on_error():
            self._begin(_WRITE)
            _require_version(self._row(_LOCK))
            yield PostgresDb(self._connection)
            self._commit()

    @contextmanager
    def snapshot(self) -> Iterator[PostgresDb]:
        """Run several reads on one consistent state, without blocking writers."""
        with self._lock, self._translated(), self._rolled_back_on_error():
            self._begin(_READ)
            yield PostgresDb(self._connection)
            self._connection.rollback()

    def close(self) -> None:
        """Close the connection; the ledger cannot be used afterwards."""
        with self._lock:
            self._connection.close()
            self._url = ""

    def _begin(self, statement: str) -> None:
        """Begin a transaction, on a new connection if the old one was lost while it was idle."""
        if not self._url:
            msg = "the ledger was closed."
            raise LedgerError(msg, hint="Open it again.")
        try:
            self._connection.execute(statement)
        except self._psycopg.OperationalError:
            self._connection.close()
            self._connection = self._connect()
            self._connection.execute(statement)

    def _commit(self) -> None:
        """Commit, and require that the server did: after an error it rolls back without a word."""
        status = self._connection.execute("COMMIT").statusmessage
        if status != "COMMIT":
            msg = f"the server answered COMMIT with {status}."
            raise LedgerError(msg, hint="Nothing was written.")

    def _row(self, statement: str) -> Any:  # noqa: ANN401  (a row of any columns, or None)
        """Return the first row of a query without parameters."""
        return self._connection.execute(statement).fetchone()

    @contextmanager
    def _rolled_back_on_error(self) -> Iterator[None]:
        """Leave no transaction open behind an error."""
        try:
            yield
        except BaseException:
            with suppress(self._psycopg.Error):
                self._connection.rollback()
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into the ledger's own.

        Raises:
            OutOfDisk: if the server has no space left.
            LedgerError: for everything else.
        """
        try:
            yield
        except self._psycopg.Error as error:
            reason = self._scrubbed(error.diag.message_primary or str(error).split("\n")[0])
            if isinstance(error, self._psycopg.errors.DiskFull):
                msg = f"the ledger could not be written: {reason}."
                raise OutOfDisk(
                    msg, hint="Free some space and resume; nothing was lost."
                ) from error
            msg = f"the ledger cannot be used: {reason}."
            hint = "The server may be down, or the ledger locked or changed; nothing was released."
            raise LedgerError(msg, hint=hint) from error

    def _scrubbed(self, text: str) -> str:
        """Return a message of the server or the driver without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text.rstrip(".")


def _driver() -> ModuleType:
    """Import psycopg.

    Raises:
        MissingDependency: if it is not installed.
    """
    try:
        import psycopg
    except ImportError as error:
        msg = "A ledger in PostgreSQL needs psycopg, which is not installed."
        raise MissingDependency(msg, hint="Run: pip install 'fedslm[postgres]'") from error
    return psycopg


def _require_version(row: tuple[int] | None) -> None:
    """Require the one row of the schema version that the code is written for."""
    version = None if row is None else row[0]
    if version != SCHEMA_VERSION:
        msg = f"ledger schema={version}, expected {SCHEMA_VERSION}."
        raise LedgerError(msg, hint="Another program or a newer fedslm made these tables.")


def _marked(sql: str) -> str:
    """Return a statement with psycopg's marks for parameters; none of ours holds ``%``."""
    return sql.replace("?", "%s")
