"""The budget of one run: which subjects a round charges, and what is spent so far.

In ``client-central`` one subject, the population, is charged once a round. In ``example`` each
client of the cohort is a subject of its own: clients' data are disjoint, so the run's epsilon is
the largest of theirs, never a sum. In mode ``none`` nothing is charged and epsilon is infinite.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.privacy.ledger import Ledger
from shared.privacy.ledger_reservations import Reservation
from shared.privacy.plan import PrivacyPlan

POPULATION = "population"
_CLIENT = "client-"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpent:
    """What the worst subject of a run has spent.

    Attributes:
        epsilon: by PLD while one plan was declared in advance; infinite in mode none.
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
        self._plan = plan
        self._run_id = run_id
        self._scope = scope
        self._releases: Counter[str] = Counter()
        if plan.mode == "none":
            return
        ledger.register_plan(run_id, plan, scope)
        for subject, known in ledger.subjects():
            if known == scope:
                self._releases[subject] = round(ledger.spent(subject, scope).releases)

    def reserve(self, server_round: int, cohort: Sequence[int]) -> Reservation | None:
        """Charge a round before anything of it is computed.

        With seeded noise the charge of a round that was already reserved is reused: the repeated
        round releases the same bits (ADR 0005).

        Returns:
            The reservation; None where nothing is charged (mode none, or nobody in the cohort of
            mode example).

        Raises:
            PrivacyBudgetExhausted: if a subject would pass the cap; nothing is written.
        """
        subjects = self._subjects(cohort)
        if not subjects:
            return None
        reservation = self._ledger.reserve(
            run_id=self._run_id,
            server_round=server_round,
            subjects=subjects,
            event=self._plan.event_for_participation(),
            idempotency_key=f"{self._run_id}/{server_round}",
        )
        if not reservation.repeated:
            for subject in subjects:
                self._releases[subject] += self._plan.releases_per_round
        return reservation

    def commit(self, reservation: Reservation | None) -> None:
        """Mark a charge as released."""
        if reservation is not None:
            self._ledger.commit(reservation)

    def participations(self) -> Mapping[int, int]:
        """Return how many rounds each client was charged for (mode example)."""
        return {
            int(subject.removeprefix(_CLIENT)): releases // self._plan.releases_per_round
            for subject, releases in self._releases.items()
            if subject.startswith(_CLIENT)
        }

    def spent(self) -> RunSpent:
        """Return what the worst subject has spent."""
        if self._plan.mode == "none":
            return RunSpent(epsilon=math.inf, epsilon_rdp=math.inf, releases=0)
        if not self._releases:
            return RunSpent(epsilon=0.0, epsilon_rdp=0.0, releases=0)
        worst, releases = max(self._releases.items(), key=lambda item: (item[1], item[0]))
        spent = self._ledger.spent(worst, self._scope)
        return RunSpent(epsilon=spent.epsilon, epsilon_rdp=spent.epsilon_rdp, releases=releases)

    def head(self) -> str:
        """Return the hash at the end of the ledger's chain."""
        return self._ledger.head().hash

    def _subjects(self, cohort: Sequence[int]) -> list[str]:
        """Return who is charged for a round with this cohort."""
        if self._plan.mode == "none":
            return []
        if self._plan.mode == "client-central":
            return [POPULATION]
        return [f"{_CLIENT}{client}" for client in cohort]
