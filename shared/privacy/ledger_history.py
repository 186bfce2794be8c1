"""Reading a ledger back: which charges were made for which release, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from shared.privacy.events import PrivacyEvent, event_from_json
from shared.privacy.ledger_store import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCharge:
    """One reservation as the ledger holds it.

    Attributes:
        reservation: its number; reservations are numbered in the order in which they were made.
        run_id: the run that asked.
        server_round: its round.
        plan_digest: the plan that the event belongs to.
        event: what was, or was about to be, released.
        subjects: who was charged, ascending.
        state: ``"reserved"`` and ``"committed"`` count in full, ``"abandoned"`` costs nothing.
    """

    reservation: int
    run_id: str
    server_round: int
    plan_digest: str
    event: PrivacyEvent
    subjects: tuple[str, ...]
    state: str


def charges_of(db: Db, scope: str) -> tuple[StoredCharge, ...]:
    """Return every reservation about some data, in order.

    Raises:
        UnsupportedEvent: if a stored event cannot be accounted for.
    """
    query = (
        "SELECT r.id, r.run_id, r.server_round, r.plan_digest, r.event, r.state, e.subject "
        "FROM reservations r JOIN entries e ON e.reservation = r.id AND e.state = 'reserved' "
        "WHERE r.scope = ? ORDER BY r.id, e.subject"
    )
    rows = db.execute(query, (scope,))
    return tuple(
        StoredCharge(
            reservation=number,
            run_id=run_id,
            server_round=server_round,
            plan_digest=plan_digest,
            event=event_from_json(event),
            subjects=tuple(row[-1] for row in group),
            state=state,
        )
        for (number, run_id, server_round, plan_digest, event, state), group in groupby(
            rows, key=itemgetter(0, 1, 2, 3, 4, 5)
        )
    )


def first_charge(db: Db, run_id: str) -> int | None:
    """Return the number of the entry that first charged somebody for a run; None if none did.

    A reservation that was abandoned later counts: something was about to leave.
    """
    (reservation,) = db.execute(
        "SELECT min(id) FROM reservations WHERE run_id = ?", (run_id,)
    ).fetchone()
    (seq,) = db.execute(
        "SELECT min(seq) FROM entries WHERE reservation = ?", (reservation,)
    ).fetchone()
    return None if seq is None else int(seq)
