"""What is read from a ledger is read after it was verified, and is what the ledger says."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerError, LedgerTampered
from shared.privacy.events import PrivacyUnit
from shared.privacy.evidence import collect_evidence
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.ledger_store import Head
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan

CENTRAL: dict[str, Any] = {
    "mode": "client-central",
    "unit": "client",
    "neighboring_relation": "add-or-remove-one",
    "noise_multiplier": 4.0,
    "delta": 1e-4,
    "clipping_norm": 0.5,
    "sampling_probability": 0.1,
    "rounds": 5,
    "population": 1000,
}
EXAMPLE: dict[str, Any] = {
    "mode": "example",
    "unit": "example",
    "neighboring_relation": "add-or-remove-one",
    "noise_multiplier": 4.0,
    "delta": 1e-5,
    "max_grad_norm": 0.5,
    "sampling_probability": 0.05,
    "releases_per_round": 4,
    "rounds": 5,
    "population": 1000,
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def spend(ledger: Ledger, plan: PrivacyPlan, run: str, scope: str, *subjects: list[str]) -> None:
    """Charge one round after the other."""
    digest = ledger.register_plan(run, plan, scope)
    for number, names in enumerate(subjects, start=1):
        reserved = ledger.reserve(
            run_id=run,
            server_round=number,
            subjects=names,
            event=plan.event_for_participation(),
            plan_digest=digest,
        )
        ledger.commit(reserved)


def test_the_figures_are_those_of_the_subject_that_spent_most(ledger: Ledger) -> None:
    plan = make_plan(**EXAMPLE)
    spend(ledger, plan, "run", "notes", ["client-1", "client-2"], ["client-2"])
    found = collect_evidence(ledger)
    assert (found.scope, found.runs, found.entries) == ("notes", ("run",), 5)
    (guarantee,) = found.guarantees
    assert guarantee.unit is PrivacyUnit.EXAMPLE
    assert guarantee.subjects == 2
    assert guarantee.spent == ledger.spent("client-2", "notes")
    assert guarantee.plans == (plan,)
    assert found.head == ledger.head()
    assert not found.anchored
    assert collect_evidence(ledger, anchor=found.head).anchored


def test_the_key_that_signed_is_part_of_the_evidence(tmp_path: Path) -> None:
    signer = LedgerSigner.load_or_create(tmp_path / "key")
    with Ledger(tmp_path / "ledger.sqlite", signer=signer) as ledger:
        spend(ledger, make_plan(**CENTRAL), "run", "notes", ["population"])
        found = collect_evidence(ledger)
        assert (found.public_key, found.trusted) == (signer.public_key, False)
        assert collect_evidence(ledger, trusted_key=signer.public_key).trusted
        with pytest.raises(LedgerTampered):
            collect_evidence(ledger, trusted_key="0" * 64)


def test_two_units_are_two_guarantees(ledger: Ledger) -> None:
    spend(ledger, make_plan(**EXAMPLE), "a", "notes", ["client-1"])
    spend(ledger, make_plan(**CENTRAL), "b", "notes", ["population"])
    found = collect_evidence(ledger)
    assert [g.unit for g in found.guarantees] == [PrivacyUnit.CLIENT, PrivacyUnit.EXAMPLE]
    assert [len(g.plans) for g in found.guarantees] == [1, 1]
    assert found.runs == ("a", "b")


def test_several_plans_of_one_unit_are_all_named(ledger: Ledger) -> None:
    plans = [make_plan(**CENTRAL), make_plan(**{**CENTRAL, "rounds": 7})]
    for number, plan in enumerate(plans):
        spend(ledger, plan, f"run-{number}", "notes", ["population"])
    (guarantee,) = collect_evidence(ledger).guarantees
    assert set(guarantee.plans) == set(plans)
    assert guarantee.spent.accountant == "rdp-filter"


def test_a_scope_must_be_named_among_several(ledger: Ledger) -> None:
    for scope in ("east", "west"):
        spend(ledger, make_plan(**CENTRAL), f"run-{scope}", scope, ["population"])
    with pytest.raises(LedgerError, match="east, west"):
        collect_evidence(ledger)
    with pytest.raises(LedgerError, match="'north'"):
        collect_evidence(ledger, scope="north")
    assert collect_evidence(ledger, scope="west").runs == ("run-west",)


def test_an_empty_ledger_states_nothing(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no charge"):
        collect_evidence(ledger)


def test_a_charge_without_privacy_states_nothing(ledger: Ledger) -> None:
    plan = make_plan(mode="none", rounds=2, population=3)
    spend(ledger, plan, "run", "notes", ["client-1"])
    with pytest.raises(LedgerError, match="without privacy"):
        collect_evidence(ledger)


def test_open_reservations_are_counted(ledger: Ledger) -> None:
    plan = make_plan(**CENTRAL)
    ledger.register_plan("run", plan, "notes")
    ledger.reserve(
        run_id="run",
        server_round=1,
        subjects=["population"],
        event=plan.event_for_participation(),
    )
    found = collect_evidence(ledger)
    assert found.open_reservations == 1
    assert found.guarantees[0].spent.releases == 1


def test_nothing_is_read_from_a_ledger_that_does_not_verify(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        spend(ledger, make_plan(**CENTRAL), "run", "notes", ["population"])
    with sqlite3.connect(path) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE entries SET server_round = 9 WHERE seq = 1")
    with Ledger(path) as ledger:
        with pytest.raises(LedgerTampered):
            collect_evidence(ledger)
        with pytest.raises(LedgerTampered):
            collect_evidence(ledger, anchor=Head(seq=1, hash="0" * 64))
