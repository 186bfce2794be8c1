"""One frozen plan couples sampling, clipping, noise and what the accountant is charged.

Everything that decides the guarantee is in :class:`PrivacyPlan`, and nothing else is: the
mechanism, the sampler and the ledger all read the plan, so what runs is what is accounted. Its
fields are the :class:`~shared.privacy.planterms.PlanTerms`; here is what they cost. Build one with
:func:`shared.privacy.planning.make_plan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared import validate
from shared.privacy.accountant import (
    ONLINE,
    REPORT,
    AccountantName,
    epsilon_of,
    reporting_accountant,
)
from shared.privacy.advice import NO_PRIVACY, numbers_to_question
from shared.privacy.events import (
    NeighboringRelation,
    NonPrivateEvent,
    NoOpEvent,
    PrivacyEvent,
    PrivacyUnit,
)
from shared.privacy.noise import SEEDED
from shared.privacy.noiseschedule import equal_releases, releases_of
from shared.privacy.planform import CLIENT_MODES
from shared.privacy.planterms import PlanTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan(PlanTerms):
    """What will be released, about whom, with which noise, and what it costs; all of it public.

    In mode ``example`` the releases of one client are accounted: every local step of every round
    it may take part in, amplified by its own secret Poisson sampling of examples, never by the
    sampling of clients. In the client modes every round is one release about every client of the
    population, amplified by the secret Poisson sampling of clients; with ``noise="correlated"``
    the whole run is one release without amplification.

    The events say what one subject is charged; every epsilon is made of them alone. The fields are
    those of :class:`~shared.privacy.planterms.PlanTerms`.
    """

    @property
    def accountant(self) -> AccountantName:
        """Return the accountant whose epsilon is reported, by the events of the whole plan.

        PLD, or Renyi for Skellam noise on a coarse grid. It is also that of every number of rounds
        up to the plan's, so it does not change as rounds pass.
        """
        return reporting_accountant(self.total_events())

    def event_for_round(self, server_round: int) -> PrivacyEvent:
        """Return what a round costs its subject: a client, or the whole population.

        With correlated noise the first round pays for the run, because the run is one release.
        """
        if self.correlated is not None and server_round > 1:
            return NoOpEvent()
        return self.event_for_participation(server_round)

    def event_for_participation(self, server_round: int | None = None) -> PrivacyEvent:
        """Return what one round costs its subject at most; without a number, the dearest round."""
        if not self.uneven:
            return self._equal(self.releases_per_round)
        if server_round is None:
            return self._composed(self._quietest(1))
        return self._composed([self.charged_noise_of(server_round)])

    def every_round(self) -> PrivacyEvent:
        """Return all rounds together: every kind of release that a subject may be charged for.

        With a cap on participations it is more than :meth:`total_events`.
        """
        return self._composed(self._quietest()) if self.uneven else self.total_events()

    def total_events(self) -> PrivacyEvent:
        """Return what the whole plan costs one subject at worst."""
        return self.events_after(self.rounds)

    def events_after(self, rounds: int) -> PrivacyEvent:
        """Return what the first rounds, at least one, cost one subject at worst."""
        if self.uneven:
            return self._composed(self._quietest(self._charged(rounds), among=rounds))
        return self._equal(self.releases_after(rounds))

    def dearest_events(self, rounds: int) -> PrivacyEvent:
        """Return what some rounds, at least one, cost one subject, whichever they were."""
        if self.uneven and rounds <= self.rounds:
            return self._composed(self._quietest(self._charged(rounds)))
        return self.events_after(rounds)

    def releases_after(self, rounds: int) -> int:
        """Return the number of noised releases about one subject after some rounds."""
        return self.releases_per_round * self._charged(rounds)

    def epsilon(self, *, accountant: AccountantName | None = None) -> float:
        """Return epsilon of the whole plan, against whoever sees only adapters.

        In mode example it also holds against the server and the network. Infinite in mode none.
        """
        return self._spent(self.total_events(), accountant, REPORT)

    def epsilon_after(self, rounds: int) -> float:
        """Return epsilon after some of the planned rounds (never above the plan's)."""
        if rounds == 0:
            return 0.0
        validate.positive_integer(rounds=rounds)
        planned = rounds <= self.rounds
        accountant = self.accountant if planned else None
        spent = self._spent(self.events_after(rounds), accountant, ONLINE)
        return min(spent, self.epsilon()) if planned else spent

    def observer_events(self) -> PrivacyEvent:
        """Return what a client costs against an observer who knows when it took part."""
        if self.mode not in CLIENT_MODES or self.noise_multiplier is None:
            return self.total_events()
        return self._unamplified(self.noise_multiplier)

    def observer_epsilon(self) -> float:
        """Return epsilon against an observer who knows in which rounds a client took part.

        The sampling of clients hides nothing from such an observer (the network, or whoever reads
        the server's logs), so in the client modes each participation counts in full, up to the
        cap on participations. In mode example it equals :meth:`epsilon`, which never counted on
        the sampling of clients. It does not protect against a server that sees the clipped
        updates themselves; see :meth:`server_epsilon`.
        """
        return self._spent(self.observer_events(), None, REPORT)

    def server_events(self) -> PrivacyEvent:
        """Return what a client costs against the server itself.

        In mode client-distributed: the part of the noise that the server does not know, every
        participation in full. The two worlds that are compared are a client that takes part with
        its data and one that takes part with an empty update.
        """
        if self.mode == "example":
            return self.total_events()
        if self.distributed is None or self.noise_multiplier is None:
            return NonPrivateEvent()
        return self._unamplified(self.noise_multiplier * math.sqrt(self.distributed.hidden_share))

    def server_epsilon(self) -> float:
        """Return epsilon against the server itself: infinite unless clients add the noise."""
        return self._spent(self.server_events(), None, REPORT)

    def warnings(self) -> tuple[str, ...]:
        """Return what a careful reader should know about this choice of numbers."""
        if self.delta is None:
            return (NO_PRIVACY,)
        example = self.unit is PrivacyUnit.EXAMPLE
        return numbers_to_question(
            unit=str(self.unit),
            epsilon=self.epsilon(),
            observer_epsilon=self.observer_epsilon(),
            delta=self.delta,
            units=self.dataset_size if example else self.population,
            cohort=None if example else self.expected_cohort,
            replace_one=self.neighboring_relation is NeighboringRelation.REPLACE_ONE,
            seeded=self.noise_source == SEEDED,
            server_epsilon=None if self.distributed is None else self.server_epsilon(),
        )

    def _equal(self, count: int) -> PrivacyEvent:
        """Return ``count`` releases of this plan, where rounds cost alike."""
        grid = None if self.distributed is None else self.distributed.grid
        return equal_releases(
            self.noise_multiplier, count, probability=self.sampling_probability, grid=grid
        )

    def _composed(self, noises: list[float], *, amplified: bool = True) -> PrivacyEvent:
        """Return rounds of different noise."""
        return releases_of(
            noises,
            probability=self.sampling_probability if amplified else 1.0,
            each=self.releases_per_round,
        )

    def _unamplified(self, noise_multiplier: float) -> PrivacyEvent:
        """Return every participation in full, with a given noise."""
        if self.uneven:
            return self._composed(self._quietest(self.participations), amplified=False)
        count = self._charged(1) if self.correlated is not None else self.participations
        grid = None if self.distributed is None else self.distributed.grid
        return equal_releases(noise_multiplier, count, probability=1.0, grid=grid)

    def _charged(self, rounds: int) -> int:
        """Return how many of the first ``rounds`` rounds one subject is charged for."""
        if self.correlated is not None:
            return min(rounds, 1)
        if self.mode == "example" and self.max_participations is not None:
            return min(rounds, self.max_participations)
        return rounds

    def _spent(
        self, event: PrivacyEvent, accountant: AccountantName | None, interval: float
    ) -> float:
        """Return epsilon of one event at this plan's delta and relation, by default as reported."""
        if self.delta is None or self.neighboring_relation is None:
            return math.inf
        return epsilon_of(
            event,
            delta=self.delta,
            relation=self.neighboring_relation,
            accountant=accountant,
            interval=interval,
        )
