from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.control.budgets import Budgets, client_subject, scope_label
from server.home import ServerHome
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import SignedHead, verify_head
from tests.server.control.ledgers import SCOPE, charge
from tests.server.control.service import make_home

pytestmark = pytest.mark.slow  # calibrating plans takes some seconds


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    home = make_home(tmp_path_factory.mktemp("budgets") / "server")
    charge(home)
    return home


def test_a_client_sees_itself_and_the_population(home: ServerHome) -> None:
    reading = Budgets(home.ledger).of_client(1, charges=10)
    assert [s.subject for s in reading.spent] == ["client-1", "population"]
    assert [c.subjects for c in reading.charges] == [("client-0", "client-1")]
    with Ledger(home.ledger, read_only=True) as ledger:
        for spent in reading.spent:
            assert ledger.spent(spent.subject, spent.scope).epsilon == spent.epsilon
    assert isinstance(reading.head, SignedHead)
    verify_head(reading.head)


def test_clients_are_not_mixed_up_by_their_digits(home: ServerHome) -> None:
    reading = Budgets(home.ledger).of_client(10, charges=10)
    assert [s.subject for s in reading.spent] == ["population"]
    assert reading.charges == ()
    assert client_subject(10) == "client-10"


def test_charges_are_the_newest_and_say_if_there_are_more(home: ServerHome) -> None:
    reading = Budgets(home.ledger).of_client(0, charges=1)
    assert [c.server_round for c in reading.charges] == [2]
    assert reading.more_charges
    assert not Budgets(home.ledger).of_client(0, charges=2).more_charges


def test_pages_cover_everyone_once(home: ServerHome) -> None:
    budgets, found, more, page = Budgets(home.ledger), [], True, 0
    while more:
        reading, more = budgets.page(page, 2)
        found += [s.subject for s in reading.spent]
        page += 1
    assert found == ["client-0", "client-1", "population"]
    assert budgets.page(10**9, 50)[0].spent == ()


def test_figures_are_evaluated_once_for_each_end_of_the_chain(
    tmp_path: Path, home: ServerHome
) -> None:
    budgets = Budgets(home.ledger)
    budgets.of_client(0)
    started = time.perf_counter()
    for _ in range(10):
        budgets.of_client(0)
    assert time.perf_counter() - started < 1.0
    before = budgets.of_client(0)
    charge(home, rounds=1, first=3)
    after = budgets.of_client(0)
    assert before.head is not None
    assert after.head is not None
    assert after.head.seq > before.head.seq
    assert after.spent[0].releases > before.spent[0].releases


def test_without_a_ledger_nothing_was_spent(tmp_path: Path) -> None:
    budgets = Budgets(tmp_path / "ledger.sqlite")
    assert budgets.of_client(0, charges=5).spent == ()
    assert budgets.page(0, 5) == (budgets.of_client(None), False)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_scopes_are_shown_without_their_folders() -> None:
    label = scope_label(f"{SCOPE}-local")
    assert label.startswith("records.jsonl-local#")
    assert scope_label("/srv/ada/records.jsonl") != scope_label("/srv/eve/records.jsonl")
    assert scope_label("builtin:clinics") == "builtin:clinics"


@given(st.text(max_size=300))
def test_a_label_holds_no_folder_and_is_short(scope: str) -> None:
    label = scope_label(scope)
    assert "/" not in label
    assert "\\" not in label
    assert len(label) <= 100
