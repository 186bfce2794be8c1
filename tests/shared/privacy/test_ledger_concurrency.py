from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared.errors import PrivacyBudgetExhausted
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from tests.ledgers import SCOPE, Place, plan_of, processes, reserve, until_refused

WORKERS = 16
SECRET = b"the key that all of them hold..."
ROUNDS = 24
PLAN = plan_of(rounds=ROUNDS)
CROWD = [f"client-{i}" for i in range(12)]
# Cheap to account for, and never exhausted.
LONG = plan_of(rounds=100_000, sampling_probability=1.0, noise_multiplier=500.0)


def all_accepted(target: Any, where: str) -> list[tuple[str, ...]]:
    """Run the same work in many processes at once; return the cohorts that were charged."""
    fork = processes()
    barrier, results = fork.Barrier(WORKERS), fork.Queue()
    workers = [
        fork.Process(target=target, args=(where, seed, barrier, results)) for seed in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    accepted = [cohort for _ in workers for cohort in results.get(timeout=300)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return accepted


def _hammer(where: str, seed: int, barrier: Any, results: Any) -> None:
    accepted = []
    with Ledger(where, signer=LedgerSigner(SECRET)) as ledger:
        barrier.wait()
        for n in range(ROUNDS + 1):
            try:
                reservation = reserve(ledger, n)
            except PrivacyBudgetExhausted:
                break
            accepted.append(reservation.subjects)
            if (seed + n) % 3 == 0:
                ledger.commit(reservation)
    results.put(accepted)


@pytest.mark.slow
def test_sixteen_processes_on_one_subject_end_exactly_at_the_cap(place: Place) -> None:
    signer = LedgerSigner(SECRET)
    with Ledger(place.where, signer=signer) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
    accepted = all_accepted(_hammer, place.where)
    assert len(accepted) == ROUNDS
    with Ledger(place.where) as ledger:
        assert ledger.spent("everyone", SCOPE).epsilon == PLAN.epsilon() == PLAN.cap
        report = ledger.verify(trusted_key=signer.public_key)
        assert report.reservations == ROUNDS
        assert report.signatures == report.entries


def _cohorts(where: str, seed: int, barrier: Any, results: Any) -> None:
    rng, kept = random.Random(seed), []
    with Ledger(where, signer=LedgerSigner(SECRET)) as ledger:
        barrier.wait()
        for n in range(14):
            try:
                reservation = reserve(ledger, n, *rng.sample(CROWD, rng.randint(1, 6)))
            except PrivacyBudgetExhausted:
                continue
            if rng.random() < 0.25:
                ledger.abandon(reservation)
            else:
                kept.append(reservation.subjects)
    results.put(kept)


@pytest.mark.slow
def test_overlapping_cohorts_of_sixteen_processes_are_charged_once_each(place: Place) -> None:
    signer = LedgerSigner(SECRET)
    with Ledger(place.where, signer=signer) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
    accepted = all_accepted(_cohorts, place.where)
    counted = Counter(name for cohort in accepted for name in cohort)
    assert max(counted.values()) <= ROUNDS
    with Ledger(place.where, signer=signer) as ledger:
        ledger.verify(trusted_key=signer.public_key)
        for name in CROWD:
            assert ledger.spent(name, SCOPE).releases == counted[name]
            for n in range(ROUNDS - counted[name]):
                reserve(ledger, n, name)
            with pytest.raises(PrivacyBudgetExhausted):
                reserve(ledger, ROUNDS, name)
        assert ledger.verify(trusted_key=signer.public_key).subjects == len(CROWD)


def _churn(where: str, log: str, seed: int) -> None:
    """Charge, release and commit until killed; a release is a line that is written in one go."""
    rng = random.Random(seed)
    released = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with Ledger(where, signer=LedgerSigner(SECRET)) as ledger:
        ledger.register_plan("run", LONG, SCOPE)
        event = LONG.event_for_participation()
        for n in range(1_000_000):
            names = rng.sample(CROWD, rng.randint(1, 4))
            reservation = reserve(ledger, n, *names, event=event)
            if rng.random() < 0.2:
                ledger.abandon(reservation)
                continue
            os.write(released, (" ".join(names) + "\n").encode())
            if rng.random() < 0.8:
                ledger.commit(reservation)


def _released(log: Path) -> Counter[str]:
    """Return how often the killed processes said that they had released something of a subject."""
    return Counter(log.read_text().split()) if log.exists() else Counter()


@pytest.mark.slow
def test_killed_two_hundred_times_it_verifies_and_never_under_counts(tmp_path: Path) -> None:
    """A process that is killed, not a machine without power: the disk keeps what was written."""
    rng, fork, signer = random.Random(5), processes(), LedgerSigner(SECRET)
    inside = 0
    for file in range(8):
        where, log, anchor = tmp_path / f"{file}.sqlite", tmp_path / f"{file}.log", None
        for kill in range(25):
            child = fork.Process(target=_churn, args=(str(where), str(log), 100 * file + kill))
            child.start()
            before = _released(log).total()
            while kill % 5 and _released(log).total() == before and child.is_alive():
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.03))
            child.kill()
            child.join()
            assert child.exitcode == -signal.SIGKILL
            with Ledger(where, signer=signer) as ledger:
                report = ledger.verify(anchor, trusted_key=signer.public_key)
                known = {subject for subject, _ in ledger.subjects()}
                for name, times in _released(log).items():
                    assert name in known
                    assert ledger.spent(name, SCOPE).releases >= times
                inside += report.open_reservations > 0
                ledger.register_plan("run", LONG, SCOPE)
                event = LONG.event_for_participation()
                ledger.commit(reserve(ledger, kill, "resumed", event=event))
                anchor = ledger.signed_head()
    assert inside > 0


@pytest.mark.slow
def test_a_server_killed_in_a_transaction_holds_nobody_up(place: Place) -> None:
    with Ledger(place.where) as ledger:
        ledger.register_plan("run", PLAN, SCOPE)
    child = processes().Process(target=_die_holding_the_lock, args=(place.where,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with Ledger(place.where) as ledger:
        start = time.perf_counter()
        accepted, _ = until_refused(ledger)
        assert accepted == ROUNDS
        assert time.perf_counter() - start < 30.0
        ledger.verify()


def _die_holding_the_lock(where: str) -> None:
    with Ledger(where) as ledger, ledger._store.transaction() as db:
        db.execute("DELETE FROM plans")
        os.kill(os.getpid(), signal.SIGKILL)
