from __future__ import annotations

import math
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import (
    InvalidValue,
    LedgerConflict,
    LedgerError,
    LedgerTampered,
    PrivacyBudgetExhausted,
    UnsupportedEvent,
)
from shared.privacy.accountant import epsilon_of, filter_epsilon
from shared.privacy.events import GaussianEvent, NeighboringRelation, NonPrivateEvent, NoOpEvent
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_store import Head, append, read_chain
from tests.ledgers import (
    EVENT,
    PLAN,
    SCOPE,
    SEEDED,
    Place,
    plan_of,
    processes,
    reserve,
    until_refused,
)

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE


def test_reserved_and_committed_count_and_abandoned_does_not(ledger: Ledger) -> None:
    def spent() -> float:
        return ledger.spent("everyone", SCOPE).epsilon

    first, second = reserve(ledger, 1), reserve(ledger, 2)
    two = spent()
    assert two == pytest.approx(PLAN.epsilon_after(2), abs=1e-9)
    ledger.commit(first)
    assert spent() == two
    ledger.abandon(second)
    assert spent() == pytest.approx(PLAN.epsilon_after(1), abs=1e-9)
    ledger.abandon(reserve(ledger, 3, "someone else"))
    assert ledger.spent("someone else", SCOPE).epsilon == 0.0
    assert ledger.verify().open_reservations == 0


def test_the_account_says_everything_that_an_epsilon_needs(ledger: Ledger) -> None:
    ledger.commit(reserve(ledger))
    spent = ledger.spent("everyone", SCOPE)
    assert (spent.delta, spent.unit, spent.relation, spent.releases) == (1e-4, "client", ADD, 1)
    assert spent.accountant == "pld"
    assert spent.cap == PLAN.cap
    assert spent.remaining == spent.cap - spent.epsilon
    assert spent.epsilon_rdp == epsilon_of(EVENT, delta=1e-4, relation=ADD, accountant="rdp")
    assert ledger.subjects() == (("everyone", SCOPE),)
    assert ledger.subjects("everyone") == ledger.subjects()
    assert ledger.subjects("nobody") == ()
    assert [plan for _, plan in ledger.plans(SCOPE)] == [PLAN]
    assert ledger.plans("elsewhere") == ()


def test_a_planned_run_ends_exactly_at_its_cap(ledger: Ledger) -> None:
    for n in range(PLAN.rounds):
        ledger.commit(reserve(ledger, n))
    spent = ledger.spent("everyone", SCOPE)
    assert spent.epsilon == PLAN.epsilon() == spent.cap
    assert spent.remaining == 0.0
    head = ledger.head()
    with pytest.raises(PrivacyBudgetExhausted) as caught:
        reserve(ledger, 99)
    assert caught.value.spent == PLAN.epsilon() == caught.value.cap < caught.value.requested
    assert "unit=client" in str(caught.value)
    assert ledger.head() == head
    assert ledger.affordable(run_id="run", subjects=["everyone", "new"], event=EVENT) == ("new",)


def test_peers_bug_a_halt_that_is_never_armed(ledger: Ledger) -> None:
    accepted, _ = until_refused(ledger)
    assert accepted == PLAN.rounds


def test_peers_bug_a_ledger_reset_at_run_start(place: Place) -> None:
    for run in ("first", "second"):
        with Ledger(place.where) as ledger:
            ledger.register_plan(run, PLAN, SCOPE)
            for n in range(3):
                ledger.commit(reserve(ledger, n, run_id=run))
            total = ledger.spent("everyone", SCOPE).epsilon
    assert total == PLAN.epsilon()
    with Ledger(place.where) as ledger, pytest.raises(PrivacyBudgetExhausted):
        reserve(ledger, 7, run_id="second")


def test_peers_bug_state_replaced_instead_of_merged_on_load(place: Place) -> None:
    seen = []
    for n in range(4):
        with Ledger(place.where) as ledger:
            ledger.register_plan("run", PLAN, SCOPE)
            reserve(ledger, n)
            seen.append(ledger.spent("everyone", SCOPE).epsilon)
    assert seen == sorted(set(seen))
    assert seen[-1] == pytest.approx(PLAN.epsilon_after(4), abs=1e-9)


def test_if_one_subject_is_exhausted_nobody_is_charged(ledger: Ledger) -> None:
    for n in range(PLAN.rounds):
        reserve(ledger, n, "tired")
    with pytest.raises(PrivacyBudgetExhausted, match="tired"):
        reserve(ledger, 9, "fresh", "tired")
    assert ledger.subjects() == (("tired", SCOPE),)
    reserve(ledger, 9, "fresh")


def test_scopes_and_subjects_do_not_compose_but_runs_do(ledger: Ledger) -> None:
    ledger.register_plan("other data", PLAN, "elsewhere")
    for n in range(PLAN.rounds):
        reserve(ledger, n)
    reserve(ledger, 1, run_id="other data")
    reserve(ledger, 1, "another")
    one = ledger.spent("everyone", "elsewhere").epsilon
    assert one == ledger.spent("another", SCOPE).epsilon < ledger.spent("everyone", SCOPE).epsilon


@pytest.mark.slow
def test_a_second_plan_is_decided_by_the_adaptive_filter(place: Place) -> None:
    first = plan_of(cap=6.0)
    second = plan_of(cap=6.0, noise_multiplier=3.0, sampling_probability=0.1)
    with Ledger(place.where) as ledger:
        ledger.register_plan("a", first, SCOPE)
        ledger.register_plan("b", second, SCOPE)
        reserve(ledger, 1, run_id="a")
        assert ledger.spent("everyone", SCOPE).accountant == "pld"
        event = second.event_for_participation()
        reserve(ledger, 1, run_id="b", event=event)
        spent = ledger.spent("everyone", SCOPE)
        assert spent.accountant == "rdp-filter"
        both: Any = {"delta": 1e-4, "relation": ADD}
        assert spent.epsilon >= spent.epsilon_rdp
        assert spent.epsilon_rdp == epsilon_of(EVENT, event, accountant="rdp", **both)
        accepted, refused = until_refused(ledger, run_id="b", event=event)
        assert accepted > 0
        assert refused.spent <= 6.0 < refused.requested
        assert epsilon_of(EVENT, event, accountant="rdp", **both) < 6.0
        assert filter_epsilon(EVENT, order=2.0, **both) > 0.0
        ledger.verify()


def test_the_smallest_cap_holds(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("low", plan_of(), SCOPE)
        reserve(ledger, 1, run_id="low")
        ledger.register_plan("raised", plan_of(cap=100.0), SCOPE)
        reserve(ledger, 1, "fresh", run_id="raised")
        assert ledger.spent("fresh", SCOPE).cap == 100.0
        until_refused(ledger, run_id="raised")
        assert ledger.spent("everyone", SCOPE).cap == PLAN.cap
        ledger.register_plan("low again", plan_of(), SCOPE)
        ledger.verify()


def test_a_cap_above_the_plan_allows_a_few_more_releases(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", plan_of(cap=2 * PLAN.epsilon()), SCOPE)
        accepted, _ = until_refused(ledger)
        assert accepted > PLAN.rounds
        assert PLAN.epsilon() < ledger.spent("everyone", SCOPE).epsilon <= 2 * PLAN.epsilon()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_accepted_stays_under_the_cap(place: Place, seed: int) -> None:
    """Random plans, subjects and endings, against the composition kept by the test itself."""
    rng = random.Random(seed)
    plans = [plan_of(cap=3.0), plan_of(cap=3.0, noise_multiplier=1.1, rounds=2)]
    held: dict[str, list[GaussianEvent]] = {"a": [], "b": [], "c": []}
    with Ledger(place.where) as ledger:
        for i, plan in enumerate(plans):
            ledger.register_plan(f"run{i}", plan, SCOPE)
        for n in range(40):
            i = rng.randrange(2) if seed % 2 else 0
            names = rng.sample(sorted(held), rng.randint(1, 3))
            event = plans[i].event_for_participation()
            assert isinstance(event, GaussianEvent)
            try:
                reservation = reserve(ledger, n, *names, run_id=f"run{i}", event=event)
            except PrivacyBudgetExhausted:
                continue
            if rng.random() < 0.2:
                ledger.abandon(reservation)
            else:
                for name in names:
                    held[name].append(event)
                if rng.random() < 0.5:
                    ledger.commit(reservation)
        for name, events in held.items():
            truth = epsilon_of(*events, delta=1e-4, relation=ADD)
            assert truth <= 3.0
            if (name, SCOPE) in ledger.subjects():
                spent = ledger.spent(name, SCOPE)
                assert truth - 1e-9 <= spent.epsilon <= 3.0
                assert spent.releases == len(events)
        ledger.verify()


def test_a_repeat_with_the_same_key_is_charged_once_where_noise_repeats(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", SEEDED, SCOPE)
        first = reserve(ledger, 1, idempotency_key="round 1")
        assert not first.repeated
        again = reserve(ledger, 1, idempotency_key="round 1")
        assert again.repeated
        assert (again.id, again.attempt, again.state) == (first.id, 1, "reserved")
        ledger.commit(first)
        assert reserve(ledger, 1, idempotency_key="round 1").state == "committed"
        ledger.commit(again)
        assert ledger.spent("everyone", SCOPE).releases == 1
        assert reserve(ledger, 1).attempt == 2
        assert ledger.spent("everyone", SCOPE).releases == 2
        ledger.verify()


def test_a_repeat_with_fresh_noise_is_a_second_release(ledger: Ledger) -> None:
    first = reserve(ledger, 1, idempotency_key="round 1")
    second = reserve(ledger, 1, idempotency_key="round 1")
    assert second.id != first.id
    assert second.attempt == 2
    assert ledger.spent("everyone", SCOPE).releases == 2


def test_a_key_names_one_release(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", SEEDED, SCOPE)
        first = reserve(ledger, 1, idempotency_key="k")
        for n, names in ((2, ("everyone",)), (1, ("someone",))):
            with pytest.raises(LedgerConflict, match="another release"):
                reserve(ledger, n, *names, idempotency_key="k")
        ledger.abandon(first)
        assert not reserve(ledger, 1, idempotency_key="k").repeated
        assert ledger.spent("everyone", SCOPE).releases == 1


def test_an_end_is_final(ledger: Ledger, tmp_path: Path) -> None:
    kept, dropped = reserve(ledger, 1), reserve(ledger, 2)
    assert ledger.open_reservations("run") == (kept.id, dropped.id)
    for _ in range(2):
        ledger.commit(kept)
        ledger.abandon(dropped)
    assert ledger.open_reservations("run") == ()
    with pytest.raises(LedgerConflict, match="was committed"):
        ledger.abandon(kept)
    with pytest.raises(LedgerConflict, match="was abandoned"):
        ledger.commit(dropped)
    other = Ledger(tmp_path / "other.sqlite")
    with other, pytest.raises(LedgerConflict, match="unknown"):
        other.commit(kept)
    assert ledger.verify().entries == 4


@pytest.mark.parametrize(
    "change",
    [
        {"delta": 1e-5},
        {"neighboring_relation": "replace-one"},
        {"mode": "none"},
        {"mode": "example", "unit": "example", "max_grad_norm": 1.0},
    ],
)
def test_epsilons_of_different_kinds_are_not_added(ledger: Ledger, change: dict[str, Any]) -> None:
    reserve(ledger, 1)
    other = plan_of(**change)
    ledger.register_plan("other", other, SCOPE)
    with pytest.raises(LedgerConflict, match="is counted with"):
        reserve(ledger, 1, run_id="other", event=other.event_for_participation())
    with pytest.raises(LedgerConflict, match="is counted with"):
        ledger.affordable(
            run_id="other", subjects=["everyone"], event=other.event_for_participation()
        )


def test_mode_none_is_recorded_as_infinite(place: Place) -> None:
    open_plan = plan_of(mode="none")
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", open_plan, SCOPE)
        ledger.abandon(reserve(ledger, 1, event=NonPrivateEvent()))
        assert ledger.spent("everyone", SCOPE).releases == 0
        for n in range(2):
            ledger.commit(reserve(ledger, n, event=NonPrivateEvent()))
        spent = ledger.spent("everyone", SCOPE)
        assert spent.epsilon == spent.cap == spent.releases == spent.epsilon_rdp == math.inf
        assert spent.remaining == 0.0
        assert spent.delta is None
        ledger.verify()


@pytest.mark.parametrize(
    "event",
    [
        GaussianEvent(noise_multiplier=2.1, sampling_probability=0.2),
        GaussianEvent(noise_multiplier=2.0, sampling_probability=0.1),
        NonPrivateEvent(),
    ],
)
def test_what_was_not_announced_is_not_charged(ledger: Ledger, event: Any) -> None:
    with pytest.raises(LedgerConflict, match=r"plan\.event_for_participation"):
        reserve(ledger, 1, event=event)
    assert ledger.head().seq == 0


def test_a_no_op_costs_nothing_but_is_recorded(ledger: Ledger) -> None:
    ledger.commit(reserve(ledger, 1, event=NoOpEvent()))
    assert ledger.spent("everyone", SCOPE).epsilon == 0.0
    assert ledger.verify().entries == 2


def test_runs_and_plans_are_registered_first(ledger: Ledger) -> None:
    with pytest.raises(LedgerConflict, match="0 plans"):
        reserve(ledger, 1, run_id="unknown")
    with pytest.raises(LedgerConflict, match="another scope"):
        ledger.register_plan("run", PLAN, "elsewhere")
    digest = ledger.register_plan("run", SEEDED, SCOPE)
    assert ledger.register_plan("run", SEEDED, SCOPE) == digest == SEEDED.digest()
    with pytest.raises(LedgerConflict, match="2 plans"):
        reserve(ledger, 1)
    assert reserve(ledger, 1, plan_digest=digest).plan_digest == digest
    for names in (("", SCOPE), ("run", "")):
        with pytest.raises(InvalidValue, match="non-empty"):
            ledger.register_plan(names[0], PLAN, names[1])


@pytest.mark.parametrize("subjects", [(), ("a", "a"), ("",), "abc"])
def test_subjects_are_names_each_once(ledger: Ledger, subjects: Any) -> None:
    with pytest.raises(InvalidValue, match="subjects"):
        ledger.reserve(run_id="run", server_round=1, subjects=subjects, event=EVENT)


def test_an_unknown_subject_has_no_account(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no entry"):
        ledger.spent("nobody", SCOPE)


def test_an_unknown_stored_event_is_refused(ledger: Ledger, place: Place) -> None:
    reservation = reserve(ledger, 1)
    place.damage("UPDATE entries SET event = replace(event, 'gaussian', 'skellam')")
    with pytest.raises(UnsupportedEvent, match="skellam"):
        ledger.abandon(reservation)
    assert ledger.open_reservations("run") == (reservation.id,)


SPOILED: dict[str, tuple[tuple[str, ...], str]] = {
    "edited event": (
        ("UPDATE entries SET event = replace(event, '2.0', '9.0') WHERE seq = 3",),
        "entry 3 does not have its hash",
    ),
    "edited subject": (
        ("UPDATE entries SET subject = 'x' WHERE seq = 2",),
        "entry 2 does not have its hash",
    ),
    "deleted from the middle": (("DELETE FROM entries WHERE seq = 3",), "entry 3 is missing"),
    "deleted from the start": (("DELETE FROM entries WHERE seq = 1",), "entry 1 is missing"),
    "swapped": (
        (
            "UPDATE entries SET seq = 100 WHERE seq = 2",
            "UPDATE entries SET seq = 2 WHERE seq = 3",
            "UPDATE entries SET seq = 3 WHERE seq = 100",
        ),
        "entry 2 does not follow",
    ),
    "tail cut, sums left": (("DELETE FROM entries WHERE seq >= 5",), "sums of"),
    "sums lowered": (("UPDATE spent SET count = 1",), "sums of"),
    "sums deleted": (("DELETE FROM spent",), "sums of"),
    "cap raised": (("UPDATE subjects SET cap = 1000.0",), "terms of"),
    "reservation reopened": (
        ("UPDATE reservations SET state = 'abandoned' WHERE id = 1",),
        "reservation 1",
    ),
    "reservation removed": (("DELETE FROM reservations WHERE id = 2",), "reservation 2"),
    "reservation invented": (
        (
            """INSERT INTO reservations SELECT 9, run_id, 9, 1, scope, plan_digest, event,
            subjects_digest, NULL, state FROM reservations WHERE id = 1""",
        ),
        "reservation 9",
    ),
    "plan edited": (
        ("UPDATE plans SET json = replace(json, '\"rounds\":6', '\"rounds\":7')",),
        "does not have its digest",
    ),
    "plan broken": (("UPDATE plans SET json = '{}'",), "cannot be read"),
    "plan removed": (("DELETE FROM plans",), "entry 1 belongs to a plan that is missing"),
    "run removed": (("DELETE FROM runs",), "entry 1 belongs to no registered run"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_tampering_is_found_and_the_first_bad_entry_named(
    ledger: Ledger, place: Place, how: str
) -> None:
    for n in range(3):
        ledger.commit(reserve(ledger, n))
    reserve(ledger, 3)
    assert ledger.verify().entries == 7
    statements, finding = SPOILED[how]
    place.damage(*statements)
    with pytest.raises(LedgerTampered, match=finding):
        ledger.verify()


def test_a_cut_tail_with_matching_state_is_found_only_through_an_anchor(
    ledger: Ledger, place: Place
) -> None:
    first = reserve(ledger, 1)
    early = ledger.head()
    reserve(ledger, 2)
    late = ledger.head()
    place.damage(
        "DELETE FROM entries WHERE seq = 2",
        "UPDATE spent SET count = 1",
        "DELETE FROM reservations WHERE id = 2",
    )
    assert not ledger.verify().anchored
    assert ledger.verify(early).anchored
    assert ledger.verify(Head(seq=0, hash="0" * 64)).anchored
    with pytest.raises(LedgerTampered, match="entry 2 is missing: a head at entry 2"):
        ledger.verify(late)
    ledger.commit(first)
    with pytest.raises(LedgerTampered, match="entry 2 is not the one"):
        ledger.verify(late)


def forge(ledger: Ledger, *changes: dict[str, Any]) -> None:
    """Append entries like the first one, with changes, as someone would who knows the hashes."""
    with ledger._store.transaction() as db:
        first = next(iter(read_chain(db))).entry
        append(db, [replace(first, **change) for change in changes])


COMMITTED: dict[str, Any] = {"state": "committed", "subject": None}


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ([{**COMMITTED, "reservation": 9}], "entry 2 neither reserves nor closes"),
        ([{**COMMITTED, "state": "forgotten"}], "entry 2 neither reserves nor closes"),
        ([COMMITTED, COMMITTED], "entry 3 neither reserves nor closes"),
        ([COMMITTED, {"subject": "x"}], "entry 3 adds to a reservation that was closed"),
        ([{"subject": "x", "attempt": 2}], "entry 2 does not belong to its reservation"),
        ([{**COMMITTED, "server_round": 2}], "entry 2 does not belong to its reservation"),
        ([{"subject": None}], "entry 2 neither reserves nor closes"),
    ],
)
def test_a_hashed_but_senseless_entry_is_found(
    ledger: Ledger, changes: list[dict[str, Any]], finding: str
) -> None:
    reserve(ledger, 1)
    forge(ledger, *changes)
    with pytest.raises(LedgerTampered, match=finding):
        ledger.verify()


def test_a_hashed_entry_of_another_kind_of_plan_is_found(ledger: Ledger) -> None:
    reserve(ledger, 1)
    digest = ledger.register_plan("run", plan_of(delta=1e-5), SCOPE)
    forge(ledger, {"plan_digest": digest, "reservation": 2})
    with pytest.raises(LedgerTampered, match="entry 2 contradicts an earlier one"):
        ledger.verify()


def test_nothing_is_charged_under_a_plan_that_was_edited(ledger: Ledger, place: Place) -> None:
    place.damage("UPDATE plans SET json = replace(json, '\"rounds\":6', '\"rounds\":7')")
    with pytest.raises(LedgerTampered, match="does not have its digest"):
        reserve(ledger, 1)


@pytest.mark.parametrize("text", ["a\0b", "half \ud800"])
def test_a_name_that_a_store_would_change_is_refused(ledger: Ledger, text: str) -> None:
    with pytest.raises(InvalidValue, match="subjects"):
        reserve(ledger, 1, text)
    for call in (
        lambda: ledger.register_plan(text, PLAN, SCOPE),
        lambda: ledger.register_plan("r", PLAN, text),
        lambda: reserve(ledger, 1, idempotency_key=text),
    ):
        with pytest.raises(InvalidValue, match="without NUL"):
            call()


def test_names_of_any_other_text_come_back_sorted_by_code_point(ledger: Ledger) -> None:
    names = ["Z", "a", "É", "ß", "日本", "🙂", "\uffff", "e\u0301", "' OR 1=1 --", "%s ?", " "]
    reserve(ledger, 1, *names)
    assert [subject for subject, _ in ledger.subjects()] == sorted(names)
    assert ledger.affordable(run_id="run", subjects=names, event=EVENT) == tuple(sorted(names))
    ledger.verify()


def test_entries_cannot_be_changed_by_accident(ledger: Ledger) -> None:
    reserve(ledger, 1)
    for statement in ("UPDATE entries SET subject = 'x'", "DELETE FROM entries"):
        with (
            pytest.raises(LedgerError, match="entries are append-only"),
            ledger._store.transaction() as db,
        ):
            db.execute(statement)
    ledger.verify()


def _crash(where: str, when: str) -> None:
    with Ledger(where) as ledger:
        if when == "inside the transaction":
            with ledger._store.transaction() as db:
                db.execute("DELETE FROM spent")
                os.kill(os.getpid(), signal.SIGKILL)
        reserve(ledger, 2)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "counted"), [("after reserving", 2), ("inside the transaction", 1)]
)
def test_a_killed_process_over_counts_and_never_under_counts(
    place: Place, when: str, counted: int
) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
        ledger.commit(reserve(ledger, 1))
    child = processes().Process(target=_crash, args=(place.where, when))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with Ledger(place.where) as ledger:
        report = ledger.verify()
        assert report.open_reservations == counted - 1
        assert ledger.spent("everyone", SCOPE).releases == counted
        reserve(ledger, 3)


def test_a_thousand_clients_are_charged_in_under_a_second(ledger: Ledger) -> None:
    names = [f"client-{i}" for i in range(1000)]
    reserve(ledger, 0, *names)
    elapsed = []
    for server_round in (1, 2, 3):
        start = time.perf_counter()
        reservation = reserve(ledger, server_round, *names)
        elapsed.append(time.perf_counter() - start)
        ledger.commit(reservation)
    # The best of three: what the ledger takes, not what a busy machine adds to it.
    assert min(elapsed) < 1.0
    assert ledger.spent("client-999", SCOPE).releases == 4
    assert ledger.verify().subjects == 1000
