"""What only a server can do wrong. Everything else runs on both stores in the other tests."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from shared.errors import LedgerError, MissingDependency, OutOfDisk
from shared.privacy import ledger_postgres
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_postgres import PostgresStore
from shared.privacy.ledger_sqlite import SqliteStore
from tests.ledgers import PLAN, SCOPE, Place, postgres_place, reserve
from tests.postgres import PostgresServer

PASSWORD = "hunter2 %@/:é"
WRONG = "swordfish%?#"


@pytest.fixture
def place(postgres: PostgresServer) -> Place:
    return postgres_place(postgres)


def store_of(ledger: Ledger) -> PostgresStore:
    assert isinstance(ledger._store, PostgresStore)
    return ledger._store


def test_servers_that_start_at_once_make_one_ledger(place: Place) -> None:
    def start(n: int) -> int:
        with Ledger(place.where) as ledger:
            ledger.register_plan("run", PLAN, SCOPE)
            return reserve(ledger, n, f"client-{n}").id

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(start, range(8))) == list(range(1, 9))
    with Ledger(place.where) as ledger:
        assert ledger.verify().entries == 8


def test_tables_of_another_program_are_left_alone(postgres: PostgresServer, place: Place) -> None:
    with postgres.connect(place.schema) as db:
        db.execute("CREATE TABLE runs (mine TEXT)")
    with pytest.raises(LedgerError, match='relation "runs" already exists'):
        Ledger(place.where)
    with postgres.connect(place.schema) as db:
        query = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
        assert db.execute(query, (place.schema,)).fetchall() == [("runs",)]


@pytest.mark.parametrize(
    "change", ["UPDATE fedslm_ledger SET version = 3", "DELETE FROM fedslm_ledger"]
)
def test_a_newer_ledger_is_refused_even_by_who_has_it_open(
    postgres: PostgresServer, place: Place, change: str
) -> None:
    with Ledger(place.where) as ledger:
        with postgres.connect(place.schema) as db:
            db.execute(change)
        with pytest.raises(LedgerError, match="expected 2"):
            ledger.register_plan("run", PLAN, SCOPE)
        for read_only in (False, True):
            with pytest.raises(LedgerError, match="expected 2"):
                Ledger(place.where, read_only=read_only)


def test_reading_only_neither_creates_nor_writes(place: Place) -> None:
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger(place.where, read_only=True)
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        reserve(ledger, 1)
    with Ledger(place.where, read_only=True) as reader:
        assert reader.verify().entries == 1
        with pytest.raises(LedgerError, match="for reading only"):
            reserve(reader, 2)
        with (
            pytest.raises(LedgerError, match="read-only transaction"),
            reader._store.snapshot() as db,
        ):
            db.execute("DELETE FROM spent")


def test_a_charge_is_durable_whatever_the_role_prefers(
    postgres: PostgresServer, place: Place
) -> None:
    with postgres.connect() as db:
        db.execute("CREATE ROLE hasty LOGIN")
        db.execute("ALTER ROLE hasty SET synchronous_commit = off")
        db.execute("ALTER ROLE hasty SET default_transaction_isolation = 'serializable'")
        db.execute(f"GRANT ALL ON SCHEMA {place.schema} TO hasty")
    with Ledger(postgres.url(place.schema, user="hasty")) as ledger:
        with ledger._store.transaction() as inside:
            for setting, value in (
                ("synchronous_commit", "on"),
                ("transaction_isolation", "read committed"),
                ("lock_timeout", "1min"),
                ("idle_in_transaction_session_timeout", "1min"),
            ):
                assert inside.execute(f"SHOW {setting}").fetchone()[0] == value
        with ledger._store.snapshot() as inside:
            assert inside.execute("SHOW transaction_isolation").fetchone()[0] == "repeatable read"


@pytest.fixture
def without_fsync(postgres: PostgresServer) -> Iterator[None]:
    def set_fsync(value: str) -> None:
        with postgres.connect() as db:
            db.execute(f"ALTER SYSTEM SET fsync = {value}")
            db.execute("SELECT pg_reload_conf()")
        for _ in range(1000):
            with postgres.connect() as db:
                if db.execute("SHOW fsync").fetchone() == (value,):
                    return
        pytest.fail("the server did not take the setting")

    set_fsync("off")
    yield
    set_fsync("on")


@pytest.mark.usefixtures("without_fsync")
def test_a_server_that_does_not_sync_is_refused(place: Place) -> None:
    with pytest.raises(LedgerError, match="fsync=off, expected on"):
        Ledger(place.where)


def test_a_database_that_is_not_utf_8_is_refused(postgres: PostgresServer) -> None:
    with postgres.connect() as db:
        db.execute("CREATE DATABASE odd ENCODING SQL_ASCII LOCALE_PROVIDER libc TEMPLATE template0")
    with pytest.raises(LedgerError, match="server_encoding=SQL_ASCII, expected UTF8"):
        Ledger(postgres.url().replace("/postgres?", "/odd?"))


@pytest.mark.slow
def test_a_connection_lost_between_calls_is_made_anew(postgres: PostgresServer) -> None:
    place = postgres_place(postgres)
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        reserve(ledger, 1)
        postgres.stop()
        try:
            with pytest.raises(LedgerError, match="server cannot be used") as caught:
                reserve(ledger, 2)
            assert str(postgres.folder) not in str(caught.value)
            with pytest.raises(LedgerError, match="server cannot be used"):
                Ledger(place.where)
        finally:
            postgres.start()
        reserve(ledger, 3)
        assert ledger.verify().entries == 2


def terminate(postgres: PostgresServer, ledger: Ledger) -> None:
    """End a ledger's connection from outside."""
    pid = store_of(ledger)._connection.info.backend_pid
    with postgres.connect() as db:
        db.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))


def _lose_the_connection(postgres: PostgresServer, ledger: Ledger, more: bool) -> None:
    with ledger._store.transaction() as db:
        db.execute("DELETE FROM spent")
        terminate(postgres, ledger)
        if more:
            db.execute("DELETE FROM subjects")


def test_a_connection_lost_in_a_transaction_leaves_nothing_behind(
    postgres: PostgresServer, place: Place
) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        reserve(ledger, 1)
        for more in (True, False):
            with pytest.raises(LedgerError, match="terminating connection"):
                _lose_the_connection(postgres, ledger, more)
        assert ledger.verify().entries == 1
        reserve(ledger, 2)


def test_who_waits_too_long_for_the_lock_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(place.where) as ledger, Ledger(place.where) as holder:
        ledger.register_plan("run", PLAN, SCOPE)
        quick = ledger_postgres._WRITE.replace("lock_timeout = '60s'", "lock_timeout = '50ms'")
        monkeypatch.setattr(ledger_postgres, "_WRITE", quick)
        with holder._store.transaction(), pytest.raises(LedgerError, match="lock timeout"):
            reserve(ledger, 1)
        reserve(ledger, 1)
        assert ledger.verify().entries == 1


def test_a_transaction_that_failed_inside_is_not_taken_for_committed(place: Place) -> None:
    with Ledger(place.where) as ledger:
        store = store_of(ledger)
        with (
            pytest.raises(LedgerError, match="answered COMMIT with ROLLBACK"),
            store.transaction() as db,
            suppress(store._psycopg.errors.DivisionByZero),
        ):
            db.execute("SELECT 1 / 0")
        ledger.register_plan("run", PLAN, SCOPE)


def test_a_full_disk_of_the_server_is_out_of_disk(place: Place) -> None:
    with Ledger(place.where) as ledger:
        with pytest.raises(OutOfDisk, match="no space left"), ledger._store.transaction() as db:
            db.execute(
                "DO 'BEGIN RAISE EXCEPTION ''no space left'' USING ERRCODE = ''53100''; END'"
            )
        ledger.register_plan("run", PLAN, SCOPE)


def test_entries_cannot_be_truncated_by_accident(place: Place) -> None:
    with Ledger(place.where) as ledger:
        for table in ("entries", "heads"):
            with (
                pytest.raises(LedgerError, match=f"{table} are append-only"),
                ledger._store.transaction() as db,
            ):
                db.execute(f"TRUNCATE {table}")


def test_a_closed_ledger_stays_closed(place: Place) -> None:
    ledger = Ledger(place.where)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="was closed"):
        ledger.head()


def test_numbers_come_back_as_they_went_in(place: Place, tmp_path: Path) -> None:
    floats = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 2.0**-1074 * 3, 1e-5, 1.0, 12345.678]
    stores = (PostgresStore(place.where), SqliteStore(tmp_path / "l.sqlite"))
    for wide in ("postgresql", "sqlite"):
        store = stores[wide == "sqlite"]
        with store.transaction() as db:
            db.executemany(
                "INSERT INTO subjects VALUES (?, 's', NULL, NULL, ?, NULL, NULL)",
                [(str(i), value) for i, value in enumerate(floats)],
            )
            rows = db.execute("SELECT delta, cap FROM subjects ORDER BY subject").fetchall()
            assert rows == [(value, None) for value in floats]
            db.execute("INSERT INTO spent VALUES ('a', 's', 'p', 'r', ?)", (2**62,))
            assert db.execute("SELECT count FROM spent").fetchall() == [(2**62,)]
        store.close()


def test_without_psycopg_the_install_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedslm\[postgres\]'"):
        Ledger("postgresql://nobody@localhost/none")


def shown(error: BaseException) -> str:
    """Return all that a user or a log could ever see of an error, its causes included."""
    seen = "".join(traceback.format_exception(error))
    while error.__cause__ is not None:
        error = error.__cause__
        seen += repr(error)
    return seen


@pytest.fixture
def locked(postgres: PostgresServer) -> Iterator[str]:
    """The name of a role that needs its password."""
    rules = postgres.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    with postgres.connect() as db:
        db.execute(f"CREATE ROLE locked LOGIN PASSWORD '{PASSWORD}'")
        rules.write_text(f"local all locked scram-sha-256\n{before}")
        db.execute("SELECT pg_reload_conf()")
    yield "locked"
    rules.write_text(before)
    with postgres.connect() as db:
        db.execute("SELECT pg_reload_conf()")
        db.execute("DROP OWNED BY locked")
        db.execute("DROP ROLE locked")


def test_a_wrong_password_is_not_in_the_error(
    postgres: PostgresServer, place: Place, locked: str
) -> None:
    for _ in range(1000):
        try:
            Ledger(postgres.url(place.schema, user=locked, password=WRONG), read_only=True)
        except LedgerError as error:
            if "password authentication failed" not in str(error):
                continue  # the server has not read its rules yet
            text = shown(error)
            break
    assert WRONG not in text
    assert "swordfish" not in text
    assert str(postgres.folder) not in text


@pytest.mark.slow
def test_a_right_password_is_not_in_any_later_error(
    postgres: PostgresServer, place: Place, locked: str
) -> None:
    with postgres.connect() as db:
        db.execute(f"GRANT ALL ON SCHEMA {place.schema} TO {locked}")
    with Ledger(postgres.url(place.schema, user=locked, password=PASSWORD)) as ledger:
        assert "hunter2" not in repr(ledger) + repr(store_of(ledger))
        errors = []
        for statement in (f"SELECT '{PASSWORD}' / 1".replace("%", "%%"), "SELECT nothing"):
            with pytest.raises(LedgerError) as caught, ledger._store.snapshot() as inside:
                inside.execute(statement)
            errors.append(str(caught.value))
        terminate(postgres, ledger)
        postgres.stop()
        try:
            with pytest.raises(LedgerError) as lost:
                ledger.head()
        finally:
            postgres.start()
        errors.append(shown(lost.value))
    assert [PASSWORD in text for text in errors] == [False] * 3
    assert "***" in errors[0]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2%zz@host/db",
        "postgresql://user:hunter2@host/db?hunter2=1",
        "postgresql://user@host/db?password=hunter2%zz",
        "postgresql://user:hunter2@[host/db",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(LedgerError, match="not a PostgreSQL URL") as caught:
        Ledger(url)
    assert "hunter2" not in shown(caught.value)
