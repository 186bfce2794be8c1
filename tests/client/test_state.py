"""What a device remembers: charges first, one answer a round, no server ledger that goes back."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.charges import (
    CLIENT,
    EXAMPLE,
    UNPROTECTED,
    Budget,
    Charge,
    client_charge,
    example_charge,
    unprotected_charge,
)
from client.devicestore import Answer
from client.state import LEDGER, LEDGER_KEY, NOTES, DeviceState
from shared.errors import (
    ConflictingSettings,
    LedgerConflict,
    LedgerError,
    LedgerTampered,
    PolicyRefused,
    PrivacyBudgetExhausted,
)
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import (
    GaussianEvent,
    NeighboringRelation,
    NonPrivateEvent,
    PrivacyUnit,
)
from shared.privacy.ledger_signing import LedgerSigner, SignedHead
from shared.privacy.ledger_store import Head
from tests.client.device import plan

NEIGHBOURS = NeighboringRelation.ADD_OR_REMOVE_ONE
RECORD = Budget(
    unit=PrivacyUnit.EXAMPLE,
    max_epsilon=8.0,
    delta=1e-5,
    neighboring_relation=NEIGHBOURS,
    min_noise_multiplier=0.5,
    max_sampling_probability=0.5,
)
WHOLE = replace(RECORD, unit=PrivacyUnit.CLIENT, max_sampling_probability=None)


def answer(number: int, run: str = "run", request: str = "r", plan_digest: str = "p") -> Answer:
    return Answer(run_id=run, server_round=number, plan_digest=plan_digest, request=request)


def charge(**changes: float) -> Charge:
    return example_charge(plan(), replace(RECORD, **changes))  # type: ignore[arg-type]


def releases(state: DeviceState) -> dict[str, float]:
    return {spent.subject: spent.releases for spent in state.spent()}


def epsilon(count: int, **changes: float) -> float:
    values = {"noise_multiplier": 1.0, "sampling_probability": 0.2, **changes}
    event = GaussianEvent(count=count, **values)
    return epsilon_of(event, delta=1e-5, relation=NEIGHBOURS)


class Server:
    """A server's ledger, as far as a device sees it."""

    def __init__(self, secret: bytes = b"s" * 32) -> None:
        self.signer = LedgerSigner(secret)

    def head(self, seq: int, name: str = "a") -> SignedHead:
        return self.signer.sign(Head(seq=seq, hash=name * 64))


def test_an_answer_is_charged_on_disk_before_it_is_made(tmp_path: Path) -> None:
    with DeviceState(tmp_path / "state") as state:
        admission = state.admit(answer(1), [charge()], repeatable=False)
        with DeviceState(tmp_path / "state") as other:
            assert releases(other) == {EXAMPLE: 2.0}
        state.commit(admission)
        [spent] = state.spent()
    assert spent.epsilon == pytest.approx(epsilon(2), rel=0.02)
    assert (spent.delta, spent.cap) == (1e-5, 8.0)
    assert spent.unit is PrivacyUnit.EXAMPLE


def test_an_answer_that_fails_stays_charged(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge()], repeatable=False)
    with DeviceState(tmp_path) as state:
        assert releases(state) == {EXAMPLE: 2.0}
        with pytest.raises(PolicyRefused, match="answered before"):
            state.admit(answer(1), [charge()], repeatable=False)
        assert releases(state) == {EXAMPLE: 2.0}


@pytest.mark.parametrize("request_", ["r", "another"])
def test_a_round_is_answered_once(tmp_path: Path, request_: str) -> None:
    with DeviceState(tmp_path) as state:
        state.commit(state.admit(answer(1), [charge()], repeatable=False))
        with pytest.raises(PolicyRefused, match="Round 1 of run_id='run' was answered before"):
            state.admit(answer(1, request=request_), [charge()], repeatable=False)
        assert releases(state) == {EXAMPLE: 2.0}


def test_the_owner_may_allow_further_answers_and_each_is_charged(tmp_path: Path) -> None:
    few = example_charge(plan(max_participations=1), RECORD)
    with DeviceState(tmp_path) as state:
        for count in (1, 2, 3):
            state.admit(answer(1), [few], repeatable=False, repeats=2)
            assert releases(state) == {EXAMPLE: 2.0 * count}
        with pytest.raises(PolicyRefused, match="answered before"):
            state.admit(answer(1), [few], repeatable=False, repeats=2)
        # It is one round of the plan all the same.
        with pytest.raises(PolicyRefused, match="answered in 1 rounds already"):
            state.admit(answer(2), [few], repeatable=False, repeats=2)


def test_what_pays_for_a_run_pays_for_no_second_answer(tmp_path: Path) -> None:
    once = replace(charge(), once=True)
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [once], repeatable=False, repeats=2)
        with pytest.raises(PolicyRefused, match="too near round 1"):
            state.admit(answer(1), [once], repeatable=False, repeats=2)


def test_seeded_noise_has_no_further_answers(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge()], repeatable=True, repeats=2)
        with pytest.raises(PolicyRefused, match="answered before"):
            state.admit(answer(1, request="x"), [charge()], repeatable=True, repeats=2)


def test_seeded_noise_repeats_the_same_bits_and_nothing_else(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        first = state.admit(answer(1), [charge()], repeatable=True)
        again = state.admit(answer(1), [charge()], repeatable=True)
        state.commit(first)
        state.commit(again)
        assert (first.repeated, again.repeated) == (False, True)
        assert releases(state) == {EXAMPLE: 2.0}
        # Another adapter under the same noise would give the noise away.
        with pytest.raises(PolicyRefused, match="answered before"):
            state.admit(answer(1, request="another"), [charge()], repeatable=True)


def test_a_run_keeps_its_plan(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge()], repeatable=False)
        with pytest.raises(PolicyRefused, match="another plan"):
            state.admit(answer(2, plan_digest="q"), [charge()], repeatable=False)


def test_rounds_split_into_many_runs_meet_the_same_cap(tmp_path: Path) -> None:
    cap = epsilon(10)
    with DeviceState(tmp_path) as state:
        for number in range(5):
            state.admit(answer(1, run=f"run-{number}"), [charge(max_epsilon=cap)], repeatable=False)
        with pytest.raises(PrivacyBudgetExhausted):
            state.admit(answer(1, run="run-5"), [charge(max_epsilon=cap)], repeatable=False)
        assert releases(state) == {EXAMPLE: 10.0}


def test_a_run_of_another_plan_composes_with_the_first(tmp_path: Path) -> None:
    other = example_charge(plan(noise_multiplier=2.0), RECORD)
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge()], repeatable=False)
        state.admit(answer(1, run="other"), [other], repeatable=False)
        [spent] = state.spent()
    assert spent.releases == 4.0
    alone = epsilon_of(
        GaussianEvent(noise_multiplier=1.0, sampling_probability=0.2, count=2),
        GaussianEvent(noise_multiplier=2.0, sampling_probability=0.2, count=2),
        delta=1e-5,
        relation=NEIGHBOURS,
    )
    assert spent.epsilon >= alone


def test_a_refused_charge_leaves_nothing(tmp_path: Path) -> None:
    """Two units: the second has no room, so the first is given back and the round stays open."""
    first = client_charge(plan("client-central"), WHOLE, honest_fraction=1.0)
    second = charge(max_epsilon=epsilon(1) / 2)
    with DeviceState(tmp_path) as state:
        with pytest.raises(PrivacyBudgetExhausted):
            state.admit(answer(1), [first, second], repeatable=False)
        assert releases(state) == {CLIENT: 0.0}
        state.admit(answer(1), [first, charge()], repeatable=False)
        assert releases(state) == {CLIENT: 1.0, EXAMPLE: 2.0}


def test_a_cap_cannot_be_raised_for_data_that_was_promised_it(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge(max_epsilon=5.0)], repeatable=False)
        state.admit(answer(2), [charge(max_epsilon=100.0)], repeatable=False)

        def go_on() -> None:
            for number in range(3, 100):
                asked = answer(1, run=f"run-{number}")
                state.admit(asked, [charge(max_epsilon=100.0)], repeatable=False)

        with pytest.raises(PrivacyBudgetExhausted, match="cap=5,"):
            go_on()
        [spent] = state.spent()
    assert spent.cap == 5.0
    assert spent.epsilon <= 5.0


def test_a_device_keeps_its_delta(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge()], repeatable=False)
        with pytest.raises(LedgerConflict, match="delta"):
            state.admit(answer(2), [charge(delta=1e-6)], repeatable=False)


def test_no_more_rounds_than_the_plan_allows_one_client(tmp_path: Path) -> None:
    few = example_charge(plan(max_participations=2), RECORD)
    with DeviceState(tmp_path) as state:
        for number in (1, 4):
            state.admit(answer(number), [few], repeatable=False)
        with pytest.raises(PolicyRefused, match="answered in 2 rounds already"):
            state.admit(answer(5), [few], repeatable=False)


def test_one_event_may_pay_for_a_whole_run_of_separated_rounds(tmp_path: Path) -> None:
    correlated = replace(charge(), once=True, separation=3)
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [correlated], repeatable=False)
        with pytest.raises(PolicyRefused, match="too near round 1"):
            state.admit(answer(3), [correlated], repeatable=False)
        state.commit(state.admit(answer(4), [correlated], repeatable=False))
        assert releases(state) == {EXAMPLE: 2.0}
        state.admit(answer(1, run="next"), [correlated], repeatable=False)
        assert releases(state) == {EXAMPLE: 4.0}


def test_an_empty_answer_costs_nothing_and_is_still_the_only_one(tmp_path: Path) -> None:
    once = replace(charge(), once=True, separation=3)
    with DeviceState(tmp_path) as state:
        state.commit(state.admit(replace(answer(1), empty=True), [once], repeatable=False))
        assert releases(state) == {}
        with pytest.raises(PolicyRefused, match="answered before"):
            state.admit(answer(1), [once], repeatable=False)
        # It neither pays for the run nor counts as a participation.
        state.admit(answer(2), [once], repeatable=False)
        assert releases(state) == {EXAMPLE: 2.0}
        state.admit(replace(answer(3), empty=True), [once], repeatable=False)
        assert releases(state) == {EXAMPLE: 2.0}


def test_after_a_round_without_noise_nothing_can_be_promised(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [unprotected_charge(plan("none"))], repeatable=False)
        [spent] = state.spent()
        assert (spent.subject, spent.epsilon) == (UNPROTECTED, float("inf"))
        with pytest.raises(PolicyRefused, match="epsilon is infinite"):
            state.admit(answer(1, run="later"), [charge()], repeatable=False)
        state.admit(answer(2), [unprotected_charge(plan("none"))], repeatable=False)


def test_only_mode_none_is_unprotected() -> None:
    assert unprotected_charge(plan("none")).event == NonPrivateEvent()
    with pytest.raises(ConflictingSettings):
        unprotected_charge(plan())


def test_a_head_may_stay_or_go_on(tmp_path: Path) -> None:
    server = Server()
    with DeviceState(tmp_path) as state:
        assert state.heads() == ()
        for seq in (0, 7, 7, 9):
            state.see_head(server.head(seq), trusted=None)
        [last] = state.heads()
    assert (last.seq, last.hash, last.public_key) == (9, "a" * 64, server.signer.public_key)


def test_a_ledger_that_went_back_is_refused_even_after_a_restart(tmp_path: Path) -> None:
    server = Server()
    with DeviceState(tmp_path) as state:
        state.see_head(server.head(9), trusted=None)
    with DeviceState(tmp_path) as state:
        with pytest.raises(LedgerTampered, match="went back from entry 9 to 8"):
            state.see_head(server.head(8), trusted=None)
        with pytest.raises(LedgerTampered, match="two histories at entry 9"):
            state.see_head(server.head(9, "b"), trusted=None)
        assert [head.seq for head in state.heads()] == [9]


def test_the_first_key_is_trusted_from_then_on(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.see_head(None, trusted=None)
        state.see_head(Server().head(1), trusted=None)
        with pytest.raises(PolicyRefused, match="expected '"):
            state.see_head(Server(b"t" * 32).head(5), trusted=None)
        with pytest.raises(PolicyRefused, match="no signed head"):
            state.see_head(None, trusted=None)


def test_a_key_that_the_owner_names_must_sign_every_time(tmp_path: Path) -> None:
    first, second = Server(), Server(b"t" * 32)
    with DeviceState(tmp_path) as state:
        with pytest.raises(PolicyRefused, match="no signed head"):
            state.see_head(None, trusted=first.signer.public_key)
        with pytest.raises(PolicyRefused, match="signed by key"):
            state.see_head(second.head(1), trusted=first.signer.public_key)
        state.see_head(first.head(5), trusted=first.signer.public_key)
        # The owner may change the key; then the newest one counts.
        state.see_head(second.head(2), trusted=second.signer.public_key)
        state.see_head(second.head(3), trusted=None)
        with pytest.raises(PolicyRefused, match="signed by key"):
            state.see_head(first.head(6), trusted=None)
        with pytest.raises(LedgerTampered, match="went back"):
            state.see_head(first.head(4), trusted=first.signer.public_key)


@pytest.mark.parametrize(
    "forged", [{"seq": 4}, {"hash": "c" * 64}, {"signature": "00" * 64}], ids=str
)
def test_a_forged_head_is_refused_and_not_kept(tmp_path: Path, forged: dict[str, Any]) -> None:
    head = Server().head(3)
    with DeviceState(tmp_path) as state:
        with pytest.raises(LedgerTampered, match="signature"):
            state.see_head(replace(head, **forged), trusted=None)
        assert state.heads() == ()


def test_only_the_owner_can_read_the_state(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    DeviceState(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in (LEDGER, LEDGER_KEY, NOTES):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_an_older_ledger_put_back_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with DeviceState(folder) as state:
        state.commit(state.admit(answer(1), [charge()], repeatable=False))
    copy = tmp_path / "copy.sqlite"
    shutil.copy(folder / LEDGER, copy)
    with DeviceState(folder) as state:
        state.commit(state.admit(answer(2), [charge()], repeatable=False))
    for path in folder.glob(f"{LEDGER}*"):
        path.unlink()
    shutil.copy(copy, folder / LEDGER)
    with pytest.raises(LedgerTampered):
        DeviceState(folder)


def test_a_ledger_that_was_taken_away_is_found(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge()], repeatable=False)
    for path in tmp_path.glob(f"{LEDGER}*"):
        path.unlink()
    with pytest.raises(LedgerTampered):
        DeviceState(tmp_path)


def test_an_edited_ledger_is_found(tmp_path: Path) -> None:
    with DeviceState(tmp_path) as state:
        state.admit(answer(1), [charge()], repeatable=False)
    with sqlite3.connect(tmp_path / LEDGER) as db:
        db.execute("UPDATE spent SET count = 1")
    db.close()
    with pytest.raises(LedgerTampered):
        DeviceState(tmp_path)


def test_looking_makes_no_state(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no device state"):
        DeviceState(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("schema", [0, 2])
def test_notes_of_another_version_are_refused(tmp_path: Path, schema: int) -> None:
    DeviceState(tmp_path).close()
    with sqlite3.connect(tmp_path / NOTES) as db:
        db.execute(f"PRAGMA user_version = {schema}")
    db.close()
    with pytest.raises(LedgerError, match=f"schema={schema}, expected 1"):
        DeviceState(tmp_path)


def test_a_damaged_file_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / NOTES).write_bytes(b"not a database, and long enough to be sure of it" * 40)
    with pytest.raises(LedgerError, match="cannot be used"):
        DeviceState(tmp_path)


def test_a_damaged_key_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / LEDGER_KEY).write_bytes(b"short")
    (tmp_path / LEDGER_KEY).chmod(0o600)
    with pytest.raises(LedgerError):
        DeviceState(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_ledger_error(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o500)
    with pytest.raises(LedgerError, match="cannot be opened"):
        DeviceState(folder)


def _hammer(folder: Path, cap: float, worker: int) -> None:
    """Answer many rounds until the budget is exhausted; write how many were admitted."""
    done = 0
    for number in range(1, 6):
        for run in range(3):
            asked = answer(number, run=f"{worker}-{run}")
            try:
                with DeviceState(folder) as state:
                    state.commit(state.admit(asked, [charge(max_epsilon=cap)], repeatable=False))
            except PrivacyBudgetExhausted:
                continue
            done += 1
    (folder / f"{worker}.json").write_text(json.dumps(done))


@pytest.mark.slow
def test_processes_together_end_exactly_at_the_cap(tmp_path: Path) -> None:
    DeviceState(tmp_path).close()
    cap = epsilon(20)
    start = multiprocessing.get_context("spawn")
    workers = [start.Process(target=_hammer, args=(tmp_path, cap, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    admitted = sum(json.loads((tmp_path / f"{n}.json").read_text()) for n in range(4))
    with DeviceState(tmp_path) as state:
        assert releases(state) == {EXAMPLE: 20.0}
    assert admitted == 10
