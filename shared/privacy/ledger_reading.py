"""What may be asked of a ledger, by whoever can open it."""

from __future__ import annotations

from shared.errors import LedgerError
from shared.privacy import ledger_history, ledger_notes, ledger_verify
from shared.privacy.ledger_charge import accounts
from shared.privacy.ledger_heads import last_signed_head
from shared.privacy.ledger_history import StoredCharge
from shared.privacy.ledger_notes import Note
from shared.privacy.ledger_reservations import plans_of
from shared.privacy.ledger_signing import SignedHead
from shared.privacy.ledger_state import Spent, read_accounts
from shared.privacy.ledger_store import Head, Store, head_of
from shared.privacy.ledger_verify import LedgerReport
from shared.privacy.plan import PrivacyPlan


class LedgerReading:
    """The reading half of :class:`shared.privacy.ledger.Ledger`; blocks no writer."""

    _store: Store

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

    def bound(self, subject: str, scope: str, plan: PrivacyPlan) -> Spent:
        """Return what a subject will have spent when a plan charged all that it may.

        Args:
            subject: one that the ledger may not have heard of yet.
            scope: which data.
            plan: one that goes on, or that ended before its last round by what it had released.

        Raises:
            LedgerConflict: if the subject is counted on other terms than the plan's.
        """
        with self._store.snapshot() as db:
            account = accounts(db, (subject,), scope, plan)[subject]
            plans = plans_of(db, account)
        return account.in_full(plan).spent((*plans, plan))

    def subjects(self, subject: str | None = None) -> tuple[tuple[str, str], ...]:
        """Return every (subject, scope), or those of one subject, ascending."""
        query = "SELECT subject, scope FROM subjects"
        values: tuple[str, ...] = ()
        if subject is not None:
            query, values = f"{query} WHERE subject = ?", (subject,)
        with self._store.snapshot() as db:
            rows = db.execute(f"{query} ORDER BY subject, scope", values)
            return tuple((name, scope) for name, scope in rows)

    def plans(self, scope: str) -> tuple[tuple[str, PrivacyPlan], ...]:
        """Return (run, plan) of every plan that was registered for a scope, ascending by run."""
        query = (
            "SELECT runs.run_id, plans.json FROM runs JOIN plans ON plans.digest = runs.digest "
            "WHERE runs.scope = ? ORDER BY runs.run_id, plans.digest"
        )
        with self._store.snapshot() as db:
            rows = db.execute(query, (scope,)).fetchall()
        return tuple((str(run), PrivacyPlan.from_json(text)) for run, text in rows)

    def open_reservations(self, run_id: str) -> tuple[int, ...]:
        """Return the numbers of a run's reservations that were neither committed nor abandoned."""
        query = "SELECT id FROM reservations WHERE run_id = ? AND state = 'reserved' ORDER BY id"
        with self._store.snapshot() as db:
            return tuple(row[0] for row in db.execute(query, (run_id,)))

    def charges(self, scope: str) -> tuple[StoredCharge, ...]:
        """Return every reservation about some data, of all runs, in order.

        Raises:
            UnsupportedEvent: if a stored event cannot be accounted for.
        """
        with self._store.snapshot() as db:
            return ledger_history.charges_of(db, scope)

    def first_charge(self, run_id: str) -> int | None:
        """Return the number of the entry that first charged somebody for a run, or None.

        A note with a smaller number was made before the run's first round.
        """
        with self._store.snapshot() as db:
            return ledger_history.first_charge(db, run_id)

    def notes(self, run_id: str | None = None) -> tuple[Note, ...]:
        """Return the notes of one run or of all, in their order in the chain.

        Raises:
            LedgerTampered: if one of them is not a note as it should be.
        """
        with self._store.snapshot() as db:
            return ledger_notes.notes_of(db, run_id)

    def head(self) -> Head:
        """Return the end of the chain, to be kept where the ledger's holder cannot change it."""
        with self._store.snapshot() as db:
            return head_of(db)

    def signed_head(self) -> SignedHead | None:
        """Return the last signed head; ``None`` if the ledger was never signed.

        Whoever keeps it can later show that the holder of the key had these entries.
        """
        with self._store.snapshot() as db:
            return last_signed_head(db)

    def verify(
        self, anchor: Head | SignedHead | None = None, trusted_key: str | None = None
    ) -> LedgerReport:
        """Recompute the whole ledger.

        Args:
            anchor: a head seen earlier; without one, a tail cut off together with the state that
                is kept beside the chain, or an older copy put back, cannot be noticed. A signed
                one also says which key to expect.
            trusted_key: the public key that must have signed, known from elsewhere; without one, a
                ledger signed anew by another key throughout, or stripped of its signatures, cannot
                be noticed.

        Returns:
            What was checked.

        Raises:
            LedgerTampered: naming the first entry, plan or subject that does not fit.
            UnsupportedEvent: if a stored event cannot be accounted for.
        """
        with self._store.snapshot() as db:
            return ledger_verify.verify(db, anchor, trusted_key)
