"""The budget of one run: which subjects a round charges, and what is spent so far.

In the client modes one subject, the population, is charged: once a round, or once for the whole run
where the noise is correlated. Where local steps are DP-SGD (mode ``example``, or beside a client
mode) each client of the cohort is a subject of its own: clients' data are disjoint, so the run's
epsilon is the largest of theirs, never a sum. In mode ``none`` nothing is charged and epsilon is
infinite.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from shared.errors import PrivacyBudgetExhausted
from shared.privacy.events import NoOpEvent
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_reservations import Reservation
from shared.privacy.ledger_signing import SignedHead
from shared.privacy.ledger_state import Spent
from shared.privacy.plan import PrivacyPlan

POPULATION = "population"
_CLIENT = "client-"
# Stands for the releases of a subject about whom something was released without privacy.
_UNCOUNTED = 2**62

Charge = tuple[Reservation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpent:
    """What the worst subject of a run has spent.

    Attributes:
        epsilon: what the ledger decides by; infinite in mode none.
        epsilon_rdp: the Renyi cross-check.
        releases: noised releases about that subject.
    """

    epsilon: float
    epsilon_rdp: float
    releases: int


class RunBudget:
    """Charges rounds of one run to the ledger.

    Args:
        ledger: the durable ledger.
        plan: the frozen plan; the event that is charged comes from it and from nowhere else.
        run_id: which run.
        scope: which data.
    """

    def __init__(self, ledger: Ledger, *, plan: PrivacyPlan, run_id: str, scope: str) -> None:
        self._ledger = ledger
        self._run_id = run_id
        self._scope = scope
        self._releases: Counter[str] = Counter()
        self._known: dict[str, Spent] = {}
        self._alone = True
        self._of_population = None if plan.mode in {"none", "example"} else plan
        self._of_clients = plan if plan.mode == "example" else plan.example
        for part in (self._of_population, self._of_clients):
            if part is not None:
                ledger.register_plan(run_id, part, scope)
        if plan.mode == "none":
            return
        # Rounds of different cost: fewer of them may have cost more.
        parts = (plan, plan.example)
        self._alone = (
            not any(part is not None and part.uneven for part in parts)
            and len({known.digest() for _, known in ledger.plans(scope)}) <= self._plans()
        )
        for subject, known in ledger.subjects():
            if known == scope:
                self._know(subject)

    def reserve(self, server_round: int, cohort: Sequence[int]) -> Charge:
        """Charge a round before anything of it is computed.

        With seeded noise the charge of a round that was already reserved is reused: the repeated
        round releases the same bits (ADR 0005).

        Args:
            server_round: the round.
            cohort: the clients that take part with their data.

        Returns:
            The reservations; none where nothing is charged (mode none, nobody in the cohort where
            only clients are charged, or a run of correlated noise that is already paid for).

        Raises:
            PrivacyBudgetExhausted: if a subject would pass the cap; nothing stays charged.
        """
        made: list[Reservation] = []
        try:
            if self._of_population is not None:
                made += self._charge(self._of_population, server_round, [POPULATION])
            if self._of_clients is not None:
                subjects = [f"{_CLIENT}{client}" for client in cohort]
                made += self._charge(self._of_clients, server_round, subjects)
        except PrivacyBudgetExhausted:
            self.abandon(tuple(made))
            raise
        return tuple(made)

    def may_have_left(self, server_round: int) -> bool:
        """Tell whether messages of a round that was begun and not finished may have left.

        They leave after its charge is on the disk. A round without an event of its own (mode none;
        correlated noise after the first round, which pays for the run) leaves no trace here.
        """
        parts = (part for part in (self._of_population, self._of_clients) if part is not None)
        if all(part.event_for_round(server_round) == NoOpEvent() for part in parts):
            return True
        return any(
            (charge.run_id, charge.server_round) == (self._run_id, server_round)
            and charge.state != "abandoned"
            for charge in self._ledger.charges(self._scope)
        )

    def commit(self, charge: Charge) -> None:
        """Mark a charge as released."""
        for reservation in charge:
            self._ledger.commit(reservation)

    def abandon(self, charge: Charge) -> None:
        """Give a charge back, because nothing that depends on anybody's data was released.

        A charge that an earlier process made stays: what that process sent is not known.
        """
        for reservation in charge:
            if reservation.repeated:
                continue
            self._ledger.abandon(reservation)
            for subject in reservation.subjects:
                self._releases[subject] -= self._per_round(subject)
                self._known.pop(subject, None)

    def participations(self) -> Mapping[int, int]:
        """Return how many rounds each client was charged for, where clients are charged."""
        if self._of_clients is None:
            return {}
        steps = self._of_clients.releases_per_round
        return {
            int(subject.removeprefix(_CLIENT)): releases // steps
            for subject, releases in self._releases.items()
            if subject.startswith(_CLIENT)
        }

    def spent(self) -> RunSpent:
        """Return what the worst subject of the run's own unit has spent."""
        if self._of_population is not None:
            return self._worst([POPULATION])
        if self._of_clients is not None:
            return self.spent_by_clients()
        return RunSpent(epsilon=math.inf, epsilon_rdp=math.inf, releases=0)

    def spent_by_clients(self) -> RunSpent:
        """Return what the client with the most releases has spent about its own examples."""
        return self._worst([name for name in self._releases if name.startswith(_CLIENT)])

    def bound(self) -> float:
        """Return epsilon as if every planned round had been charged to everybody it may be.

        It holds for a run that ends earlier by what it released, whenever that is.
        """
        plan = self._of_population or self._of_clients
        if plan is None:
            return math.inf
        names = [POPULATION]
        if self._of_population is None:
            names = [n for n in self._releases if n.startswith(_CLIENT) and self._releases[n] > 0]
        figures = (self._ledger.bound(name, self._scope, plan).epsilon for name in names)
        return max(figures, default=plan.epsilon())

    def head(self) -> str:
        """Return the hash at the end of the ledger's chain."""
        return self._ledger.head().hash

    def signed_head(self) -> SignedHead | None:
        """Return the signed end of the ledger's chain, for devices to remember."""
        return self._ledger.signed_head()

    def end(self) -> dict[str, object]:
        """Return the end of the ledger's chain and its signature, for a run's summary."""
        signed = self.signed_head()
        if signed is None:
            head = self._ledger.head()
            return {"seq": head.seq, "hash": head.hash, "public_key": None, "signature": None}
        return asdict(signed)

    def _charge(
        self, plan: PrivacyPlan, server_round: int, subjects: list[str]
    ) -> list[Reservation]:
        """Reserve what a round costs some subjects under one plan."""
        event = plan.event_for_round(server_round)
        if not subjects or event == NoOpEvent() or self._already_paid(plan):
            return []
        reservation = self._ledger.reserve(
            run_id=self._run_id,
            server_round=server_round,
            subjects=subjects,
            event=event,
            plan_digest=plan.digest(),
            idempotency_key=f"{self._run_id}/{server_round}/{plan.mode}",
        )
        if not reservation.repeated:
            for subject in subjects:
                self._releases[subject] += plan.releases_per_round
                self._known.pop(subject, None)
        return [reservation]

    def _already_paid(self, plan: PrivacyPlan) -> bool:
        """Tell whether an earlier process charged a run that is one release as a whole.

        That process released nothing: a release is a checkpoint, and a run with a checkpoint does
        not come back to its first round.
        """
        return plan.correlated is not None and bool(self._ledger.open_reservations(self._run_id))

    def _per_round(self, subject: str) -> int:
        """Return how many releases a round is about one subject."""
        plan = self._of_population if subject == POPULATION else self._of_clients
        return 0 if plan is None else plan.releases_per_round

    def _worst(self, names: Sequence[str]) -> RunSpent:
        """Return what the subject that has spent most has spent.

        Under one plan that is the one with the most releases. Under several, fewer releases may
        have cost more, so every subject's own figure is looked at; what an earlier run released
        without privacy is infinite.
        """
        found = [(self._releases[name], name) for name in names if self._releases[name] > 0]
        if not found:
            return RunSpent(epsilon=0.0, epsilon_rdp=0.0, releases=0)
        releases, worst = max(found)
        if not self._alone:
            releases, worst = max(found, key=lambda item: self._spent_by(item[1]).epsilon)
            spent = self._spent_by(worst)
        else:
            spent = self._ledger.spent(worst, self._scope)
        return RunSpent(epsilon=spent.epsilon, epsilon_rdp=spent.epsilon_rdp, releases=releases)

    def _plans(self) -> int:
        """Return how many plans this run registers."""
        return sum(part is not None for part in (self._of_population, self._of_clients))

    def _know(self, subject: str) -> None:
        """Read what a subject has spent, with other runs on the same data."""
        spent = self._ledger.spent(subject, self._scope)
        self._known[subject] = spent
        finite = math.isfinite(spent.releases)
        self._releases[subject] = round(spent.releases) if finite else _UNCOUNTED

    def _spent_by(self, subject: str) -> Spent:
        """Return what a subject has spent, read again only if this run charged it since."""
        if subject not in self._known:
            self._known[subject] = self._ledger.spent(subject, self._scope)
        return self._known[subject]
