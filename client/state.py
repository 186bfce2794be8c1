"""What a device remembers by itself: what it spent, what it answered, which server heads it saw.

A folder that only its owner can read. ``ledger.sqlite`` is a ledger like the server's, signed with
the device's own key; ``device.sqlite`` holds the rounds that were answered and the newest head of
the server's ledger. The order is the guarantee's: the charge is on the disk, and the round is noted
as answered, before any private record is touched; a crash over-counts and never under-counts.

One folder is one body of data. All runs on it compose, whatever the file is called and however it
grows; a digest of its contents would forget what was spent as soon as one record is added. Data of
other people belong to another folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from client.charges import UNPROTECTED, Charge
from client.devicestore import Answer, DeviceStore, SeenHead
from shared.errors import FedSLMError, LedgerError, LedgerTampered, PolicyRefused
from shared.files import disk_errors
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner, verify_head
from shared.privacy.ledger_store import Head

if TYPE_CHECKING:
    from shared.privacy.ledger_reservations import Reservation
    from shared.privacy.ledger_signing import SignedHead
    from shared.privacy.ledger_state import Spent
    from shared.privacy.ledger_verify import LedgerReport

LEDGER = "ledger.sqlite"
LEDGER_KEY = "ledger.key"
NOTES = "device.sqlite"
SCOPE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The right to answer one round; its charges are on the disk.

    Attributes:
        reservations: what was charged; none where the same bits were paid for before.
        repeated: whether the same question was answered before.
    """

    reservations: tuple[Reservation, ...]
    repeated: bool


class DeviceState:
    """One open state folder; several processes may use it at once.

    Args:
        folder: where it lies.
        create: make it if it does not exist.

    Raises:
        LedgerError: if it does not exist or cannot be used.
        LedgerTampered: if the device's ledger is not whole, or older than it was.
        OutOfDisk: if there is no space to create it.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        if create:
            with disk_errors(folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not (folder / NOTES).is_file():
            msg = f"There is no device state in {folder.name}."
            raise LedgerError(msg, hint="A device makes it when it first answers.")
        self._notes = DeviceStore(folder / NOTES)
        try:
            signer = LedgerSigner.load_or_create(folder / LEDGER_KEY)
            self._ledger = Ledger(folder / LEDGER, signer=signer)
        except BaseException:
            self._notes.close()
            raise
        try:
            self.verify()
        except BaseException:
            self.close()
            raise

    def see_head(self, head: SignedHead | None, *, trusted: str | None) -> None:
        """Check the head of the server's ledger and keep it.

        Without a trusted key the first one that is seen is trusted from then on.

        Args:
            head: what came with the instruction.
            trusted: the key that the owner's policy names, or ``None``.

        Raises:
            PolicyRefused: if a head is missing although one is due, or another key signed it.
            LedgerTampered: if the signature is wrong, or the server's ledger went back or split.
        """
        with self._notes.transaction():
            heads = self._notes.heads()
            expected = trusted or (heads[-1].public_key if heads else None)
            if head is None:
                if expected is None:
                    return
                msg = "The instruction has no signed head of the server's ledger, expected one "
                msg += f"of key {expected[:12]!r}."
                raise PolicyRefused(msg)
            if expected is not None and head.public_key != expected:
                msg = f"The head of the server's ledger is signed by key {head.public_key[:12]!r}"
                msg += f", expected {expected[:12]!r}."
                raise PolicyRefused(msg)
            verify_head(head)
            _require_later(head, [seen for seen in heads if seen.public_key == head.public_key])
            self._notes.keep_head(
                SeenHead(public_key=head.public_key, seq=head.seq, hash=head.hash)
            )

    def admit(
        self, answer: Answer, charges: Sequence[Charge], *, repeatable: bool, repeats: int = 0
    ) -> Admission:
        """Charge an answer and note it, durably, before it is computed.

        An empty answer, which no record touches, is noted and costs nothing.

        Args:
            answer: which round of which run, under which plan, and what was asked.
            charges: what it costs; one a privacy unit.
            repeatable: whether the same question gives the same bits (seeded noise), so that a
                second answer says nothing new.
            repeats: how often a round may be answered again with fresh noise, each time charged
                in full; a server that crashed in a round needs it to go on.

        Returns:
            The admission, to be committed once the reply is built.

        Raises:
            PolicyRefused: if the round was answered before, came too soon, or the run changed its
                plan, or records already left the device without noise.
            PrivacyBudgetExhausted: if a budget would be passed; nothing is kept then.
            LedgerConflict: if the ledger counts in another unit, relation or delta.
        """
        with self._notes.transaction():
            before = self._notes.answers(answer.run_id)
            if repeatable and answer in before:
                return Admission(reservations=(), repeated=True)
            _require_new(answer, before, charges, repeats=0 if repeatable else repeats)
            self._require_protected(charges)
            paid = any(not other.empty for other in before)
            due = [charge for charge in charges if not (charge.once and paid)]
            reservations = self._reserve(answer, () if answer.empty else due)
            self._notes.add_answer(answer)
            self._keep_own_head()
        return Admission(reservations=reservations, repeated=False)

    def commit(self, admission: Admission) -> None:
        """Record that the answer was made."""
        for reservation in admission.reservations:
            self._ledger.commit(reservation)
        with self._notes.transaction():
            self._keep_own_head()

    def spent(self) -> tuple[Spent, ...]:
        """Return what each unit has spent over all runs."""
        subjects = [subject for subject, scope in self._ledger.subjects() if scope == SCOPE]
        return tuple(self._ledger.spent(subject, SCOPE) for subject in subjects)

    def heads(self) -> tuple[SeenHead, ...]:
        """Return the newest head of each server key, the key that is trusted now last."""
        return self._notes.heads()

    def verify(self) -> LedgerReport:
        """Recompute the device's ledger.

        Raises:
            LedgerTampered: naming the first entry that does not fit, or if the file is older than
                the notes beside it.
        """
        own = self._notes.own_head()
        return self._ledger.verify(None if own is None else Head(seq=own[0], hash=own[1]))

    def close(self) -> None:
        """Close the files."""
        self._ledger.close()
        self._notes.close()

    def __enter__(self) -> DeviceState:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _reserve(self, answer: Answer, charges: Sequence[Charge]) -> tuple[Reservation, ...]:
        """Reserve every charge, or none."""
        made: list[Reservation] = []
        try:
            for charge in charges:
                digest = self._ledger.register_plan(answer.run_id, charge.plan, SCOPE)
                made.append(
                    self._ledger.reserve(
                        run_id=answer.run_id,
                        server_round=answer.server_round,
                        subjects=[charge.subject],
                        event=charge.event,
                        plan_digest=digest,
                    )
                )
        except FedSLMError:
            for reservation in made:
                self._ledger.abandon(reservation)
            raise
        return tuple(made)

    def _require_protected(self, charges: Sequence[Charge]) -> None:
        """Refuse to promise anything about records that left without noise."""
        promised = any(charge.subject != UNPROTECTED for charge in charges)
        if promised and (UNPROTECTED, SCOPE) in self._ledger.subjects():
            msg = "Records of this device were answered about in mode 'none': epsilon is infinite."
            raise PolicyRefused(msg, hint="No later round can promise less about the same data.")

    def _keep_own_head(self) -> None:
        """Note where the ledger ends, so that an older copy of it shows."""
        head = self._ledger.head()
        self._notes.keep_own_head(head.seq, head.hash)


def _require_later(head: SignedHead, seen: Sequence[SeenHead]) -> None:
    """Refuse a ledger that went back, or that has two histories."""
    for last in seen:
        if head.seq < last.seq:
            msg = f"The server's ledger went back from entry {last.seq} to {head.seq}."
            raise LedgerTampered(msg, hint="An older copy of it was put back.")
        if head.seq == last.seq and head.hash != last.hash:
            msg = f"The server's ledger has two histories at entry {head.seq}."
            raise LedgerTampered(msg, hint="Entries that this device saw were rewritten.")


def _require_new(
    answer: Answer, before: Sequence[Answer], charges: Sequence[Charge], *, repeats: int
) -> None:
    """Refuse a second answer to a round, and rounds that the charges do not cover."""
    asked, run = answer.server_round, answer.run_id
    if any(other.plan_digest != answer.plan_digest for other in before):
        msg = f"run_id={run!r} came with another plan than before."
        raise PolicyRefused(msg, hint="A run keeps its plan; start another run.")
    if sum(other.server_round == asked for other in before) > repeats:
        msg = f"Round {asked} of run_id={run!r} was answered before; a second answer is refused."
        raise PolicyRefused(msg, hint="Fresh noise on the same data is a second release.")
    if answer.empty:
        return
    rounds = {other.server_round for other in before if not other.empty}
    for charge in charges:
        if not len(rounds | {asked}) <= charge.plan.participations:
            msg = f"run_id={run!r} was answered in {len(rounds)} rounds already; its plan allows "
            msg += f"{charge.plan.participations}."
            raise PolicyRefused(msg)
        # One event that pays for a run does not pay for a second answer to one of its rounds.
        again = rounds if charge.once else rounds - {asked}
        near = [number for number in again if abs(number - asked) < charge.separation]
        if near:
            msg = f"Round {asked} of run_id={run!r} comes too near round {min(near)}; "
            msg += f"the plan says {charge.separation} rounds apart."
            raise PolicyRefused(msg)
