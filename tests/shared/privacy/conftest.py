from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.privacy.ledger import Ledger
from tests.ledgers import PLAN, SCOPE, Place, postgres_place, sqlite_place
from tests.postgres import MISSING, PostgresServer, binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for the whole session; only where CI installs one is its absence a failure."""
    programs = binaries()
    if programs is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'fedslm[postgres]'")
    server = PostgresServer(programs)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place without a ledger yet, in each store."""
    if request.param == "sqlite":
        return sqlite_place(tmp_path)
    return postgres_place(request.getfixturevalue("postgres"))


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    """A ledger with one registered plan, in each store."""
    with Ledger(place.where) as opened:
        opened.register_plan("run", PLAN, SCOPE)
        yield opened
