"""Changing the journal of a file that others hold."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from shared.sqlitefile import write_ahead


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=0.01, isolation_level=None, check_same_thread=False)


def _held(path: Path) -> sqlite3.Connection:
    """Return a connection that is writing to a new file in rollback mode."""
    other = _open(path)
    other.execute("CREATE TABLE t (x)")
    other.execute("BEGIN EXCLUSIVE")
    return other


def test_it_waits_for_whoever_holds_the_file(tmp_path: Path) -> None:
    other, mine = _held(tmp_path / "f"), _open(tmp_path / "f")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        mine.execute("PRAGMA journal_mode = WAL")
    later = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    later.start()
    write_ahead(mine, 30)
    later.join()
    assert mine.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    mine.close()


def test_it_gives_up_in_the_end(tmp_path: Path) -> None:
    other, mine = _held(tmp_path / "f"), _open(tmp_path / "f")
    begun = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(mine, 0.2)
    assert 0.2 <= time.monotonic() - begun < 10
    other.close()
    mine.close()


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"no database at all" * 100)
    mine = _open(tmp_path / "f")
    begun = time.monotonic()
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_ahead(mine, 30)
    assert time.monotonic() - begun < 10
    mine.close()
