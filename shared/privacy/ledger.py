"""The privacy budget, durable and checkable: reserve, release, commit.

A reservation is on the disk before anything noised leaves, so a crash between reserving and
committing over-counts and never under-counts. The chain of entries is append-only and hashed;
:meth:`Ledger.verify` recomputes it and names the first bad entry. With a signer, the end of the
chain is signed in the transaction that moved it. What a ledger cannot prove about itself is that
its tail was not cut off or an old copy put back: keep :meth:`Ledger.signed_head` (or ``head``)
elsewhere and hand it to ``verify``. Notes (:meth:`Ledger.note`) stand in the same chain and charge
nobody.

Which epsilon decides. As long as a subject's charges in a scope come from one plan, declared
before the first of them, its reported figure decides (PLD, or Renyi for noise on a coarse grid).
Once charges of a second plan are asked for, the schedule was not fixed in advance, and the sum of
Renyi divergences decides, at the one order that was best for the first plan (see
:func:`shared.privacy.accountant.filter_epsilon`). Each rule is sound by itself at the stated
delta; if the *decision to start* a second plan depends on what the first one released, only twice
that delta is proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from shared.canonical import canonical_json
from shared.errors import InvalidValue
from shared.privacy import ledger_verify
from shared.privacy.events import Composition, PrivacyEvent, event_from_json
from shared.privacy.ledger_charge import (
    accounts,
    charge,
    require_names,
    require_part_of_plan,
    require_subjects,
)
from shared.privacy.ledger_heads import require_right_to_write, sign_head
from shared.privacy.ledger_notes import Note, add_note, note_entry, require_scope
from shared.privacy.ledger_postgres import PostgresStore
from shared.privacy.ledger_reading import LedgerReading
from shared.privacy.ledger_reservations import (
    Reservation,
    attempts,
    close_reservation,
    next_reservation,
    plan_of,
    repeated_reservation,
    utc_now,
    view,
)
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.ledger_sqlite import SqliteStore
from shared.privacy.ledger_state import add_charges
from shared.privacy.ledger_store import Db, Entry, head_of
from shared.privacy.noise import SEEDED
from shared.privacy.plan import PrivacyPlan

_URL = ("postgresql:", "postgres:")


class Ledger(LedgerReading):
    """A budget ledger in one SQLite file or PostgreSQL database, for several processes at once.

    Args:
        where: a file, created if it does not exist, or the URL of a PostgreSQL database
            (``postgresql://user@host/database``), in which the ledger's tables are created.
        signer: signs the chain's end in every transaction that moves it. A ledger that was signed
            once cannot be written without the same key any more. The first signature on entries
            that were written without one is made after a whole verification.
        read_only: neither create, migrate nor change anything.

    Raises:
        LedgerError: if the store is damaged, not a ledger, or cannot be opened.
        OutOfDisk: if there is no space to create it.
        MissingDependency: for a URL without the package that speaks to PostgreSQL.
        InvalidValue: if a URL was made into a path, which loses a slash.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        signer: LedgerSigner | None = None,
        read_only: bool = False,
    ) -> None:
        self._signer = signer
        if isinstance(where, str) and where.startswith(tuple(f"{start}//" for start in _URL)):
            self._store = PostgresStore(where, read_only=read_only)
            return
        path = Path(where)
        if path.parts and path.parts[0] in _URL:
            msg = "a PostgreSQL URL was given as a path, expected a string."
            raise InvalidValue(msg, hint="Give it as postgresql://user@host/database.")
        self._store = SqliteStore(path, read_only=read_only)

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
            LedgerConflict: if the run has a plan or a note about another scope.
        """
        require_names(run_id=run_id, scope=scope)
        digest = plan.digest()
        with self._writing() as db:
            require_scope(db, run_id, scope)
            text = canonical_json(plan.to_json())
            db.execute("INSERT INTO plans VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, text))
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (run_id, digest, scope),
            )
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
        names = require_subjects(subjects)
        require_names(idempotency_key=idempotency_key)
        text = canonical_json(event.to_json())
        with self._writing() as db:
            plan, digest, scope = plan_of(db, run_id, plan_digest)
            require_part_of_plan(event, plan)
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
            charge(db, entry, names, event, plan)
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
        names = require_subjects(subjects)
        with self._store.snapshot() as db:
            plan, digest, scope = plan_of(db, run_id, plan_digest)
            found = accounts(db, names, scope, plan)
            asked = Composition.of(event)
            return tuple(n for n in names if found[n].fits(asked, plan, digest))

    def commit(self, reservation: Reservation) -> None:
        """Record that the release was made; committing twice changes nothing.

        Raises:
            LedgerConflict: if the reservation is unknown or was abandoned.
        """
        with self._writing() as db:
            close_reservation(db, reservation, "committed")

    def abandon(self, reservation: Reservation) -> None:
        """Give a charge back because *nothing* was released; doing it twice changes nothing.

        Only the caller can know this. If in doubt (a crash, a lost connection), do not abandon.

        Raises:
            LedgerConflict: if the reservation is unknown or was committed.
        """
        with self._writing() as db:
            if close_reservation(db, reservation, "abandoned"):
                rows = db.execute(
                    "SELECT subject, event FROM entries WHERE reservation = ? AND state = ?",
                    (reservation.id, "reserved"),
                ).fetchall()
                charged = Composition.of(event_from_json(rows[0][1]))
                names = [row[0] for row in rows]
                add_charges(db, names, reservation.scope, reservation.plan_digest, charged, sign=-1)

    def note(self, run_id: str, scope: str, name: str, digest: str) -> Note:
        """Append a digest to the chain that charges nobody; repeating it changes nothing.

        What is noted before the run's first charge (:meth:`first_charge`) was fixed before
        anything was released: a commitment. The run needs no plan yet, and none at all in mode
        none.

        Args:
            run_id: the run that it is about.
            scope: that run's data.
            name: what the digest is of: one to four lower-case words joined by hyphens. Each is
                said once in a run, except ``"audit-report"``.
            digest: SHA-256, 64 lower-case hexadecimal digits.

        Returns:
            The note, with its place in the chain.

        Raises:
            LedgerConflict: if the run has another scope, or noted another digest under the name.
            InvalidValue: for a name or digest of another form.
            OutOfDisk: if no space is left; nothing is written.
        """
        entry = note_entry(run_id=run_id, scope=scope, name=name, digest=digest)
        with self._writing() as db:
            return add_note(db, entry)

    def close(self) -> None:
        """Close the file or the connection."""
        self._store.close()

    @contextmanager
    def _writing(self) -> Iterator[Db]:
        """Run one exclusive transaction and sign the end of the chain that it leaves.

        Raises:
            LedgerError: if the ledger is signed with another key than the signer's.
            LedgerTampered: if the chain does not end at the last signature, or entries that are
                about to be signed for the first time do not fit.
        """
        with self._store.transaction() as db:
            signed, before = require_right_to_write(db, self._signer), head_of(db)
            yield db
            if self._signer is not None and head_of(db) != before:
                if signed is None and before.seq:
                    ledger_verify.verify(db)
                sign_head(db, self._signer)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
