"""Reservations in the ledger: their rows, their plans, their ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from shared.canonical import sha256_hex
from shared.errors import LedgerConflict, LedgerTampered
from shared.privacy.ledger_state import Account
from shared.privacy.ledger_store import Db, Entry, append, subjects_digest
from shared.privacy.plan import PrivacyPlan

State = Literal["reserved", "committed", "abandoned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A charge that is on the disk; release only while holding one.

    Attributes:
        id: number of the reservation.
        run_id: the run that asked.
        server_round: its round.
        attempt: 1 for the first reservation of the round.
        scope: which data.
        plan_digest: the plan that the event belongs to.
        subjects: who was charged, ascending.
        state: ``"reserved"``, ``"committed"`` or ``"abandoned"`` when it was returned.
        repeated: whether it existed before, so that nothing was charged this time.
    """

    id: int
    run_id: str
    server_round: int
    attempt: int
    scope: str
    plan_digest: str
    subjects: tuple[str, ...]
    state: str
    repeated: bool


def plan_of(db: Db, run_id: str, digest: str | None) -> tuple[PrivacyPlan, str, str]:
    """Return the plan of a run, its digest and its scope."""
    rows = db.execute(
        "SELECT digest, scope, json FROM runs JOIN plans USING (digest) WHERE run_id = ?",
        (run_id,),
    ).fetchall()
    found = [row for row in rows if digest is None or row[0] == digest]
    if len(found) != 1:
        msg = f"run_id={run_id!r} has {len(found)} plans that fit, expected one."
        raise LedgerConflict(msg, hint="Register the plan first, and name it if there are several.")
    plan_digest, scope, text = found[0]
    return _stored_plan(plan_digest, text), plan_digest, scope


def plans_of(db: Db, account: Account) -> list[PrivacyPlan]:
    """Return the plans that charged an account."""
    query = "SELECT digest, json FROM plans WHERE digest = ?"
    return [_stored_plan(*db.execute(query, (digest,)).fetchone()) for digest, _ in account.charges]


@lru_cache(maxsize=256)
def _stored_plan(digest: str, text: str) -> PrivacyPlan:
    """Read a stored plan once; nothing is charged under a plan that was edited.

    Raises:
        LedgerTampered: if the text does not have its digest.
    """
    if sha256_hex(text) != digest:
        msg = f"plan {digest[:12]} does not have its digest."
        raise LedgerTampered(msg, hint="Restore the ledger from a copy.")
    return PrivacyPlan.from_json(text)


def repeated_reservation(db: Db, entry: Entry, names: tuple[str, ...]) -> Reservation | None:
    """Return the live reservation with the same key, if there is one."""
    row = db.execute(
        "SELECT id, server_round, attempt, plan_digest, event, subjects_digest, state "
        "FROM reservations WHERE run_id = ? AND idempotency_key = ? AND state != 'abandoned'",
        (entry.run_id, entry.idempotency_key),
    ).fetchone()
    if row is None:
        return None
    number, server_round, attempt, plan_digest, event, subjects, state = row
    same = (entry.server_round, entry.plan_digest, entry.event, subjects_digest(names))
    if (server_round, plan_digest, event, subjects) != same:
        msg = f"idempotency_key={entry.idempotency_key!r} was used for another release."
        raise LedgerConflict(msg, hint="A key names one release of one run.")
    known = replace(entry, reservation=number, attempt=attempt)
    return view(known, names, state=state, repeated=True)


def view(entry: Entry, names: tuple[str, ...], *, state: str, repeated: bool) -> Reservation:
    """Return the caller's view of a reservation."""
    return Reservation(
        id=entry.reservation,
        run_id=entry.run_id,
        server_round=entry.server_round,
        attempt=entry.attempt,
        scope=entry.scope,
        plan_digest=entry.plan_digest,
        subjects=names,
        state=state,
        repeated=repeated,
    )


def close_reservation(db: Db, reservation: Reservation, state: State) -> bool:
    """Move a reservation from reserved to its end; tell whether it moved."""
    row = db.execute(
        "SELECT run_id, server_round, attempt, scope, plan_digest, event, idempotency_key, state "
        "FROM reservations WHERE id = ?",
        (reservation.id,),
    ).fetchone()
    if row is None or row[0] != reservation.run_id:
        msg = f"reservation {reservation.id} of run_id={reservation.run_id!r} is unknown."
        raise LedgerConflict(msg)
    if row[7] == state:
        return False
    if row[7] != "reserved":
        msg = f"reservation {reservation.id} was {row[7]} and cannot be {state}."
        raise LedgerConflict(msg)
    entry = Entry(
        time=utc_now(),
        state=state,
        reservation=reservation.id,
        run_id=row[0],
        server_round=row[1],
        attempt=row[2],
        subject=None,
        scope=row[3],
        plan_digest=row[4],
        event=row[5],
        idempotency_key=row[6],
    )
    append(db, [entry])
    db.execute("UPDATE reservations SET state = ? WHERE id = ?", (state, reservation.id))
    return True


def next_reservation(db: Db) -> int:
    """Return the number of the next reservation."""
    (number,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM reservations").fetchone()
    return int(number)


def attempts(db: Db, run_id: str, server_round: int) -> int:
    """Return how many reservations a round already has."""
    (number,) = db.execute(
        "SELECT count(*) FROM reservations WHERE run_id = ? AND server_round = ?",
        (run_id, server_round),
    ).fetchone()
    return int(number)


def utc_now() -> str:
    """Return the time, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
