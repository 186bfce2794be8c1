from __future__ import annotations

import errno
import gzip
import hashlib
import math
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidValue, LedgerError, OutOfDisk, UnsupportedEvent
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_sqlite import SqliteStore, translated_errors
from shared.privacy.ledger_store import Head
from tests.ledgers import PLAN, SCOPE, processes, reserve

V1 = Path(__file__).parent / "data" / "ledger-v1.sqlite.gz"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        opened.register_plan("run", PLAN, SCOPE)
        yield opened


def raw(ledger: Ledger) -> sqlite3.Connection:
    """Return the connection itself."""
    assert isinstance(ledger._store, SqliteStore)
    return ledger._store._db


def test_the_file_is_private_to_its_owner(ledger: Ledger, path: Path) -> None:
    reserve(ledger, 1)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0


def test_a_charge_is_synced_to_the_disk(ledger: Ledger) -> None:
    with ledger._store.snapshot() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"this is not a ledger" * 400)


def _another_database(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.close()


def _a_newer_ledger(path: Path) -> None:
    Ledger(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize("spoil", [_not_a_database, _another_database, _a_newer_ledger])
def test_a_file_that_is_not_our_ledger_is_refused(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(path)
    with pytest.raises(LedgerError):
        Ledger(path)


def test_a_missing_folder_is_an_error_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file") as caught:
        Ledger(tmp_path / "nowhere" / "ledger.sqlite")
    assert str(tmp_path) not in str(caught.value)


def test_a_full_disk_is_its_own_error_and_nothing_is_charged(ledger: Ledger) -> None:
    reserve(ledger, 1)
    head = ledger.head()
    with ledger._store.snapshot() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    raw(ledger).execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutOfDisk):
        reserve(ledger, 2, *(f"client-{i}" for i in range(3000)))
    raw(ledger).execute("PRAGMA max_page_count = 1000000")
    assert ledger.head() == head
    assert ledger.verify().reservations == 1


def test_no_space_from_the_system_is_out_of_disk() -> None:
    with pytest.raises(OutOfDisk), translated_errors():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_url_that_was_made_into_a_path_is_refused(tmp_path: Path) -> None:
    for where in (Path("postgresql://user@host/db"), "postgres:/db"):
        with pytest.raises(InvalidValue, match="given as a path"):
            Ledger(where)
    with Ledger(tmp_path / "odd ?#%name.sqlite"):
        assert [file.name for file in tmp_path.glob("*.sqlite")] == ["odd ?#%name.sqlite"]


# What the code of schema 1 said about its file, written down before schema 2 existed.
V1_HEAD = Head(seq=12, hash="ec10b6043417e2678378a133e5d6c37633a283d832e102e1b77397a304215197")
V1_RELEASES = {"a": 2.0, "b": 2.0, "c": 0.0, "d": math.inf}
V1_EPSILON = {"a": 0.6568035160612076, "b": 0.826388835619799, "c": 0.0, "d": math.inf}
V1_ACCOUNTANT = {"a": "pld", "b": "rdp-filter", "c": "pld", "d": "pld"}


@pytest.fixture
def old(path: Path) -> Path:
    path.write_bytes(gzip.decompress(V1.read_bytes()))
    return path


def _version(path: Path) -> int:
    db = sqlite3.connect(path)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_of_schema_1_says_what_it_always_said(old: Path, read_only: bool) -> None:
    with Ledger(old, read_only=read_only) as ledger:
        report = ledger.verify(V1_HEAD)
        assert (report.entries, report.subjects, report.reservations) == (12, 4, 6)
        assert (report.open_reservations, report.anchored, report.signatures) == (2, True, 0)
        assert report.head == V1_HEAD == ledger.head()
        for subject, scope in ledger.subjects():
            spent = ledger.spent(subject, scope)
            assert spent.epsilon == pytest.approx(V1_EPSILON[subject], abs=1e-9)
            assert spent.releases == V1_RELEASES[subject]
            assert spent.accountant == V1_ACCOUNTANT[subject]


def test_reading_a_file_of_schema_1_does_not_change_it(old: Path) -> None:
    before = hashlib.sha256(old.read_bytes()).digest()
    with Ledger(old, read_only=True) as ledger:
        ledger.verify()
    assert hashlib.sha256(old.read_bytes()).digest() == before
    assert [file.name for file in old.parent.iterdir()] == [old.name]


def test_a_file_of_schema_1_goes_on_with_its_chain_unchanged(old: Path) -> None:
    query = "SELECT seq, prev_hash, hash, time, state, subject, event FROM entries ORDER BY seq"
    db = sqlite3.connect(old)
    chain = db.execute(query).fetchall()
    db.close()
    with Ledger(old) as ledger:
        with ledger._store.snapshot() as snapshot:
            assert snapshot.execute(query).fetchall() == chain
        ledger.register_plan("new", PLAN, SCOPE)
        ledger.commit(reserve(ledger, 1, "a", "new", run_id="new"))
        assert ledger.spent("a", SCOPE).releases == 3
    assert _version(old) == 2
    with Ledger(old) as ledger:
        assert ledger.verify(V1_HEAD).entries == 15


def test_sums_of_schema_1_that_mean_nothing_stop_the_migration(old: Path) -> None:
    db = sqlite3.connect(old)
    db.execute("UPDATE spent SET z = -1.0 WHERE subject = 'a'")
    db.commit()
    db.close()
    for read_only in (False, True):
        with pytest.raises(UnsupportedEvent, match="noise_multiplier"):
            Ledger(old, read_only=read_only)
    assert _version(old) == 1


def test_reading_only_changes_nothing(ledger: Ledger, path: Path) -> None:
    reserve(ledger, 1)
    with Ledger(path, read_only=True) as reader:
        assert reader.head() == ledger.head()
        assert reader.verify().entries == 1
        for _ in range(2):
            with pytest.raises(LedgerError, match="for reading only"):
                reserve(reader, 2)
        with pytest.raises(LedgerError, match="readonly"), reader._store.snapshot() as db:
            db.execute("DELETE FROM spent")
        reserve(ledger, 2)
        assert reader.verify().entries == 2


def test_reading_only_never_creates_a_file(path: Path) -> None:
    with pytest.raises(LedgerError, match="unable to open"):
        Ledger(path, read_only=True)
    assert not path.exists()
    sqlite3.connect(path).close()
    with pytest.raises(LedgerError, match="schema=0"):
        Ledger(path, read_only=True)


def _open_at_once(path: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    with Ledger(path) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        results.put(ledger.verify().entries)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["new", "schema 1"])
def test_processes_that_open_a_file_at_once_make_one_ledger(path: Path, start: str) -> None:
    if start == "schema 1":
        path.write_bytes(gzip.decompress(V1.read_bytes()))
    fork = processes()
    barrier, results = fork.Barrier(6), fork.Queue()
    workers = [
        fork.Process(target=_open_at_once, args=(str(path), barrier, results)) for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    entries = {results.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert entries == {0 if start == "new" else 12}
