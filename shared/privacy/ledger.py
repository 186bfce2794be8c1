"""The privacy budget, durable and checkable: reserve, release, commit.

A reservation is on the disk before anything noised leaves, so a crash between reserving and
committing over-counts and never under-counts. The chain of entries is append-only and hashed;
:meth:`Ledger.verify` recomputes it and names the first bad entry. What a file cannot prove about
itself is that its tail was not cut off or an old copy put back: keep :meth:`Ledger.head` elsewhere
and hand it to ``verify``.

Which epsilon decides. As long as a subject's charges in a scope come from one plan, declared
before the first of them, its PLD figure decides. Once charges of a second plan are asked for, the
schedule was not fixed in advance, and the sum of Renyi divergences decides, at the one order that
was best for the first plan (see :func:`shared.privacy.accountant.filter_epsilon`). Each rule is
sound by itself at the stated delta; if the *decision to start* a second plan depends on what the
first one released, only twice that delta is proved.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from shared.canonical import canonical_json
from shared.errors import InvalidValue, LedgerConflict, LedgerError
from shared.privacy import ledger_verify
from shared.privacy.events import Composition, PrivacyEvent, event_from_json
from shared.privacy.ledger_reservations import (
    Reservation,
    attempts,
    close_reservation,
    next_reservation,
    plan_of,
    plans_of,
    repeated_reservation,
    utc_now,
    view,
)
from shared.privacy.ledger_state import (
    Account,
    Spent,
    Terms,
    add_charges,
    read_accounts,
    write_terms,
)
from shared.privacy.ledger_store import Entry, Head, LedgerStore, append, head_of, subjects_digest
from shared.privacy.ledger_verify import LedgerReport
from shared.privacy.noise import SEEDED
from shared.privacy.plan import PrivacyPlan


class Ledger:
    """A budget ledger in one SQLite file; several processes may use it at once.

    Args:
        path: the file, created if it does not exist.

    Raises:
        LedgerError: if the file is damaged, not a ledger, or cannot be opened.
        OutOfDisk: if there is no space to create it.
    """

    def __init__(self, path: str | Path) -> None:
        self._store = LedgerStore(Path(path))

    def register_plan(self, run_id: str, plan: PrivacyPlan, scope: str) -> str:
        """Declare a plan for a run before its first reservation; repeating it changes nothing.

        Args:
            run_id: names the run.
            plan: what it will release. A run whose clients have different public numbers may
                register several plans for the same scope.
            scope: names the data; charges in different scopes do not compose.

        Returns:
            The plan's digest.

        Raises:
            LedgerConflict: if the run is registered with another scope.
        """
        _require_names(run_id=run_id, scope=scope)
        digest = plan.digest()
        with self._store.transaction() as db:
            for (other,) in db.execute("SELECT scope FROM runs WHERE run_id = ?", (run_id,)):
                if other != scope:
                    msg = f"run_id={run_id!r} is registered with another scope than {scope!r}."
                    raise LedgerConflict(msg, hint="Data of another scope needs another run.")
            text = canonical_json(plan.to_json())
            db.execute("INSERT OR IGNORE INTO plans VALUES (?, ?)", (digest, text))
            db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?)", (run_id, digest, scope))
        return digest

    def reserve(
        self,
        *,
        run_id: str,
        server_round: int,
        subjects: Sequence[str],
        event: PrivacyEvent,
        plan_digest: str | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Charge subjects durably for a release that is about to be made.

        One transaction for all subjects: either everyone is charged and the charge is on the disk
        when this returns, or nobody is.

        With an ``idempotency_key``, a repeat of the same reservation returns the first one without
        a second charge. That is right only where the repeated release is bit-identical because
        noise and data are the same, so it is honoured only for plans whose noise source is
        ``"seeded-simulation"``; with fresh noise a repeat is a second release and is charged. So
        is a repeat of a reservation that was abandoned.

        Args:
            run_id: a run with a registered plan.
            server_round: its round.
            subjects: who is charged, at least one, each once.
            event: what is about to be released; part of the plan.
            plan_digest: which of the run's plans, if it has several.
            idempotency_key: names this release across restarts.

        Returns:
            The reservation.

        Raises:
            PrivacyBudgetExhausted: if a subject's epsilon would pass its cap; nothing is written.
            LedgerConflict: if the run or plan is not registered, the event is not part of the
                plan, a subject's history has another unit, relation or delta, or the key was used
                for something else.
            InvalidValue: for an empty or repeated subject.
            UnsupportedEvent: if an event, new or stored, cannot be accounted for.
            OutOfDisk: if no space is left; nothing is written.
        """
        names = _require_subjects(subjects)
        text = canonical_json(event.to_json())
        with self._store.transaction() as db:
            plan, digest, scope = plan_of(db, run_id, plan_digest)
            _require_part_of_plan(event, plan)
            attempt = 1 + attempts(db, run_id, server_round)
            entry = Entry(
                time=utc_now(),
                state="reserved",
                reservation=next_reservation(db),
                run_id=run_id,
                server_round=server_round,
                attempt=attempt,
                subject=None,
                scope=scope,
                plan_digest=digest,
                event=text,
                idempotency_key=idempotency_key,
            )
            if idempotency_key is not None and plan.noise_source == SEEDED:
                known = repeated_reservation(db, entry, names)
                if known is not None:
                    return known
            _charge(db, entry, names, event, plan)
        return view(entry, names, state="reserved", repeated=False)

    def affordable(
        self,
        *,
        run_id: str,
        subjects: Sequence[str],
        event: PrivacyEvent,
        plan_digest: str | None = None,
    ) -> tuple[str, ...]:
        """Return the subjects that could be charged now; others are to be left out of sampling.

        Raises:
            LedgerConflict: as :meth:`reserve`.
        """
        names = _require_subjects(subjects)
        with self._store.snapshot() as db:
            plan, digest, scope = plan_of(db, run_id, plan_digest)
            accounts = _accounts(db, names, scope, plan)
            asked = Composition.of(event)
            return tuple(n for n in names if accounts[n].fits(asked, plan, digest))

    def commit(self, reservation: Reservation) -> None:
        """Record that the release was made; committing twice changes nothing.

        Raises:
            LedgerConflict: if the reservation is unknown or was abandoned.
        """
        with self._store.transaction() as db:
            close_reservation(db, reservation, "committed")

    def abandon(self, reservation: Reservation) -> None:
        """Give a charge back because *nothing* was released; doing it twice changes nothing.

        Only the caller can know this. If in doubt (a crash, a lost connection), do not abandon.

        Raises:
            LedgerConflict: if the reservation is unknown or was committed.
        """
        with self._store.transaction() as db:
            if close_reservation(db, reservation, "abandoned"):
                rows = db.execute(
                    "SELECT subject, event FROM entries WHERE reservation = ? AND state = ?",
                    (reservation.id, "reserved"),
                ).fetchall()
                charged = Composition.of(event_from_json(rows[0][1]))
                names = [row[0] for row in rows]
                add_charges(db, names, reservation.scope, reservation.plan_digest, charged, sign=-1)

    def spent(self, subject: str, scope: str) -> Spent:
        """Return what a subject has spent.

        Raises:
            LedgerError: if the ledger has never heard of the subject in this scope.
        """
        with self._store.snapshot() as db:
            account = read_accounts(db, [subject], scope).get(subject)
            if account is None:
                msg = f"no entry for subject={subject!r} in scope={scope!r}."
                raise LedgerError(msg, hint="Ledger.subjects() lists what is there.")
            plans = plans_of(db, account)
        return account.spent(plans)

    def subjects(self) -> tuple[tuple[str, str], ...]:
        """Return every (subject, scope), ascending."""
        with self._store.snapshot() as db:
            rows = db.execute("SELECT subject, scope FROM subjects ORDER BY subject, scope")
            return tuple((subject, scope) for subject, scope in rows)

    def open_reservations(self, run_id: str) -> tuple[int, ...]:
        """Return the numbers of a run's reservations that were neither committed nor abandoned."""
        query = "SELECT id FROM reservations WHERE run_id = ? AND state = 'reserved' ORDER BY id"
        with self._store.snapshot() as db:
            return tuple(row[0] for row in db.execute(query, (run_id,)))

    def head(self) -> Head:
        """Return the end of the chain, to be kept where the ledger's holder cannot change it."""
        with self._store.snapshot() as db:
            return head_of(db)

    def verify(self, anchor: Head | None = None) -> LedgerReport:
        """Recompute the whole ledger.

        Args:
            anchor: a head seen earlier; without one, a tail cut off together with the state that
                is kept beside the chain, or an older copy put back, cannot be noticed.

        Returns:
            What was checked.

        Raises:
            LedgerTampered: naming the first entry, plan or subject that does not fit.
            UnsupportedEvent: if a stored event cannot be accounted for.
        """
        with self._store.snapshot() as db:
            return ledger_verify.verify(db, anchor)

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _charge(
    db: sqlite3.Connection,
    entry: Entry,
    names: tuple[str, ...],
    event: PrivacyEvent,
    plan: PrivacyPlan,
) -> None:
    """Decide about every subject, then write entries and state."""
    asked = Composition.of(event)
    accounts = _accounts(db, names, entry.scope, plan)
    for name in names:
        if not accounts[name].fits(asked, plan, entry.plan_digest):
            raise accounts[name].refusal(asked, plan, entry.plan_digest)
    append(db, [replace(entry, subject=name) for name in names])
    db.execute(
        "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.reservation,
            entry.run_id,
            entry.server_round,
            entry.attempt,
            entry.scope,
            entry.plan_digest,
            entry.event,
            subjects_digest(names),
            entry.idempotency_key,
            "reserved",
        ),
    )
    write_terms(db, accounts.values())
    add_charges(db, names, entry.scope, entry.plan_digest, asked, sign=1)


def _accounts(
    db: sqlite3.Connection, names: tuple[str, ...], scope: str, plan: PrivacyPlan
) -> dict[str, Account]:
    """Return the subjects' accounts as a plan finds them, new ones included."""
    known = read_accounts(db, names, scope)
    terms = Terms.of(plan)
    return {
        name: known[name].under(plan)
        if name in known
        else Account(subject=name, scope=scope, terms=terms)
        for name in names
    }


def _require_part_of_plan(event: PrivacyEvent, plan: PrivacyPlan) -> None:
    """Require that an event was announced: its noise and sampling are those of the plan."""
    asked, planned = Composition.of(event), Composition.of(plan.total_events())
    announced = {pair[:2] for pair in planned.pairs}
    if not {pair[:2] for pair in asked.pairs} <= announced:
        msg = "an event has another noise multiplier or sampling probability than the plan."
        raise LedgerConflict(msg, hint="Use plan.event_for_participation().")
    if planned.private and not asked.private:
        msg = "a non-private event was asked for under a private plan."
        raise LedgerConflict(msg, hint="Use plan.event_for_participation().")


def _require_subjects(subjects: Sequence[str]) -> tuple[str, ...]:
    """Require at least one subject, each once; return them ascending."""
    names = tuple(sorted(subjects)) if not isinstance(subjects, str) else ()
    if not (names and all(names) and len(set(names)) == len(names)):
        msg = f"{len(names)} subjects, expected at least one, none empty, each once."
        raise InvalidValue(msg, hint="A round without subjects releases nothing: skip it.")
    return names


def _require_names(**names: str) -> None:
    """Require non-empty strings."""
    for key, value in names.items():
        if not value:
            msg = f"{key}={value!r}, expected a non-empty string."
            raise InvalidValue(msg)
