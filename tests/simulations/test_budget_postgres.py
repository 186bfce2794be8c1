"""``fedslm budget`` reads a ledger in PostgreSQL by its URL, and changes nothing there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import errors
from shared.privacy.ledger import Ledger
from simulations.cli import run
from tests.ledgers import PLAN, SCOPE, Place, postgres_place, reserve
from tests.postgres import MISSING, PostgresServer, binaries


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    programs = binaries()
    if programs is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'fedslm[postgres]'")
    started = PostgresServer(programs)
    yield started
    started.remove()


@pytest.fixture
def place(server: PostgresServer) -> Place:
    found = postgres_place(server)
    with Ledger(found.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        ledger.commit(reserve(ledger, 1))
        ledger.commit(reserve(ledger, 2))
    return found


@pytest.mark.slow
def test_status_verify_and_export_take_a_url(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with Ledger(place.where) as ledger:
        spent, head = ledger.spent("everyone", SCOPE), ledger.head()
    assert run(["budget", "status", place.where, "--subject", "everyone", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["spent"] == {"epsilon": spent.epsilon, "delta": spent.delta}
    anchor = f"{head.seq}:{head.hash}"
    assert run(["budget", "verify", place.where, "--anchor", anchor, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["anchored"] is True
    assert run(["budget", "export", place.where]) == 0
    page = (tmp_path / "privacy-statement.md").read_text(encoding="utf-8")
    assert f"fedslm budget verify LEDGER --anchor {anchor}" in page
    assert "postgres" not in page  # a URL may hold a password
    with Ledger(place.where) as ledger:
        assert ledger.head() == head


@pytest.mark.slow
def test_tampering_in_a_database_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.damage("UPDATE entries SET server_round = 9 WHERE seq = 3")
    assert run(["budget", "verify", place.where]) == errors.LedgerTampered.exit_code
    assert "3" in capsys.readouterr().err
    assert run(["budget", "export", place.where]) == errors.LedgerTampered.exit_code
