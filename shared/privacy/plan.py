"""One frozen plan couples sampling, clipping, noise and what the accountant is charged.

Everything that decides the guarantee is in :class:`PrivacyPlan`, and nothing else is: the
mechanism, the sampler and the ledger all read the plan, so what runs is what is accounted. Build
one with :func:`shared.privacy.planning.make_plan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import get_args

from shared import validate
from shared.canonical import canonical_json, sha256_hex
from shared.errors import ConflictingSettings
from shared.privacy.accountant import (
    ONLINE,
    REPORT,
    AccountantName,
    epsilon_of,
    reporting_accountant,
)
from shared.privacy.advice import NO_PRIVACY, numbers_to_question
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.distributed import DistributedSkellam
from shared.privacy.events import (
    NeighboringRelation,
    NonPrivateEvent,
    NoOpEvent,
    PrivacyEvent,
    PrivacyUnit,
)
from shared.privacy.mechanism import GaussianMechanism
from shared.privacy.noise import SEEDED, NoiseKind
from shared.privacy.noiseschedule import NoiseSchedule, equal_releases, releases_of
from shared.privacy.planform import (
    CLIENT_MODES,
    Mode,
    NoiseForm,
    choice,
    plan_fields,
    plan_to_json,
)
from shared.privacy.planrules import require_fields_of_mode, require_mechanism_of_mode
from shared.privacy.quantile import QuantileClipping
from shared.privacy.terms import DistributedTerms
from shared.privacy.vote import VoteTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What will be released, about whom, with which noise; all of it public.

    In mode ``example`` the releases of one client are accounted: every local step of every round
    it may take part in, amplified by its own secret Poisson sampling of examples, never by the
    sampling of clients. In the client modes every round is one release about every client of the
    population, amplified by the secret Poisson sampling of clients; with ``noise="correlated"``
    the whole run is one release without amplification.

    Attributes:
        mode: ``"none"``, ``"example"``, ``"client-central"`` or ``"client-distributed"``.
        unit: whose presence is hidden; ``None`` in mode none.
        neighboring_relation: ``None`` in mode none.
        delta: of every epsilon of this plan; ``None`` in mode none.
        noise_multiplier: noise divided by the clip; ``None`` in mode none. With quantile clipping
            that of update and count released together; with correlated noise that of the one
            Gaussian release which the whole run amounts to; with a schedule that of round 1.
        clipping_norm: clip of a whole client update (client modes), else ``None``; with quantile
            clipping the first one.
        max_grad_norm: clip of one example's gradient (mode example), else ``None``.
        sampling_probability: of an example in a step, or of a client in a round; 1 in mode none
            and with correlated noise, which counts on no sampling.
        releases_per_round: local steps (mode example), else 1.
        rounds: server rounds planned.
        max_participations: enforced cap on the rounds of one client, or ``None``.
        population: number of clients.
        dataset_size: public lower bound on the number of examples of a client, or ``None``.
        noise_source: ``"os-entropy"`` or ``"seeded-simulation"``.
        cap: epsilon that the ledger may not pass; ``None`` in mode none.
        noise: ``"gaussian"``, ``"correlated"`` (client-central) or ``"skellam"``
            (client-distributed, always).
        example: the plan of DP-SGD inside each client, beside a client mode; both are promised.
        quantile: adaptive clipping (client-central, Gaussian noise), or ``None``.
        correlated: bands and separation of correlated noise, or ``None``.
        distributed: trust and tolerance of distributed noise, or ``None``.
        schedule: how noise changes over the rounds (example; client-central with a fixed clip), or
            ``None`` where every round has the same.
        vote: in which rounds clients vote beside their update (client-central), or ``None``.

    Raises:
        InvalidValue: if a field is missing, superfluous for the mode, or out of range.
        ConflictingSettings: if mode, noise and their terms do not belong together.
    """

    mode: Mode
    unit: PrivacyUnit | None
    neighboring_relation: NeighboringRelation | None
    delta: float | None
    noise_multiplier: float | None
    clipping_norm: float | None
    max_grad_norm: float | None
    sampling_probability: float
    releases_per_round: int
    rounds: int
    max_participations: int | None
    population: int
    dataset_size: int | None
    noise_source: NoiseKind
    cap: float | None
    noise: NoiseForm = "gaussian"
    example: PrivacyPlan | None = None
    quantile: QuantileClipping | None = None
    correlated: CorrelatedTerms | None = None
    distributed: DistributedTerms | None = None
    schedule: NoiseSchedule | None = None
    vote: VoteTerms | None = None

    def __post_init__(self) -> None:
        choice("mode", self.mode, get_args(Mode))
        choice("noise", self.noise, get_args(NoiseForm))
        choice("noise_source", self.noise_source, get_args(NoiseKind))
        validate.probability(sampling_probability=self.sampling_probability)
        validate.positive_integer(
            releases_per_round=self.releases_per_round,
            rounds=self.rounds,
            population=self.population,
        )
        if self.max_participations is not None:
            validate.positive_integer(max_participations=self.max_participations)
        if self.dataset_size is not None:
            validate.positive_integer(dataset_size=self.dataset_size)
        require_fields_of_mode(self)
        require_mechanism_of_mode(self)

    @property
    def participations(self) -> int:
        """Return the largest number of rounds that one client can take part in."""
        if self.correlated is not None:
            return self.correlated.max_participations
        return min(self.rounds, self.max_participations or self.rounds)

    @property
    def expected_cohort(self) -> float:
        """Return the public size by which a sum is divided: the mean size of a cohort."""
        if self.correlated is not None:
            return float(math.ceil(self.population / self.correlated.min_separation))
        return self.sampling_probability * self.population

    @property
    def accountant(self) -> AccountantName:
        """Return the accountant whose epsilon is reported, by the events of the whole plan.

        PLD, or Renyi for Skellam noise on a coarse grid. It is also that of every number of rounds
        up to the plan's, so it does not change as rounds pass.
        """
        return reporting_accountant(self.total_events())

    @property
    def uneven(self) -> bool:
        """Whether rounds cost differently: by a schedule, or because some have a vote."""
        return self.schedule is not None or self.vote is not None

    @property
    def least_noise_multiplier(self) -> float | None:
        """Return the smallest noise multiplier that a round is charged by; ``None`` in mode none.

        In a round with a vote that is the noise multiplier of update and vote together.
        """
        if not self.uneven or self.noise_multiplier is None:
            return self.noise_multiplier
        return self._quietest(1)[0]

    def noise_multiplier_of(self, server_round: int) -> float | None:
        """Return the noise multiplier of a round's update, from 1; ``None`` in mode none."""
        if self.schedule is None or self.noise_multiplier is None:
            return self.noise_multiplier
        return self.noise_multiplier * self.schedule.factor(server_round, rounds=self.rounds)

    def charged_noise_of(self, server_round: int) -> float:
        """Return the noise multiplier of all that a round releases, a vote included."""
        noise = self.noise_multiplier_of(server_round) or 0.0
        if self.vote is None or not self.vote.taken(server_round):
            return noise
        return self.vote.joint(noise)

    @property
    def mechanism(self) -> GaussianMechanism:
        """Return the server's mechanism of the first round; see :meth:`mechanism_of`."""
        return self.mechanism_of(1)

    def mechanism_of(self, server_round: int) -> GaussianMechanism:
        """Return the server's mechanism (mode client-central with independent noise).

        Args:
            server_round: from 1.

        Raises:
            ConflictingSettings: in another mode, where the server adds no such noise.
        """
        noise = self.noise_multiplier_of(server_round)
        if (
            self.mode != "client-central"
            or self.noise != "gaussian"
            or self.clipping_norm is None
            or noise is None
        ):
            msg = f"mode={self.mode!r}, noise={self.noise!r}: no Gaussian noise at the server."
            raise ConflictingSettings(msg)
        return GaussianMechanism(
            noise_multiplier=noise,
            clipping_norm=self.clipping_norm,
            sampling_probability=self.sampling_probability,
        )

    @property
    def distributed_mechanism(self) -> DistributedSkellam:
        """Return the mechanism of shares and sum (mode client-distributed).

        Raises:
            ConflictingSettings: in another mode.
        """
        if self.distributed is None or self.clipping_norm is None or self.noise_multiplier is None:
            msg = f"mode={self.mode!r}: clients add no shares of noise."
            raise ConflictingSettings(msg)
        return DistributedSkellam(
            noise_multiplier=self.noise_multiplier,
            clipping_norm=self.clipping_norm,
            grid=self.distributed.grid,
            sampling_probability=self.sampling_probability,
        )

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

    def digest(self) -> str:
        """Return the SHA-256 digest of the plan's canonical JSON."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, object]:
        """Return the stored form; one that version 1 could express has the form of version 1."""
        return plan_to_json({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_json(cls, value: object) -> PrivacyPlan:
        """Read a stored plan of any version.

        Raises:
            SchemaMismatch: for an unknown schema version or other fields.
            InvalidValue: if a field is out of range.
        """
        known = plan_fields(value, {field.name for field in fields(cls)})
        inner = known.get("example")
        return cls(**{**known, "example": None if inner is None else cls.from_json(inner)})

    def _equal(self, count: int) -> PrivacyEvent:
        """Return ``count`` releases of this plan, where rounds cost alike."""
        grid = None if self.distributed is None else self.distributed.grid
        return equal_releases(
            self.noise_multiplier, count, probability=self.sampling_probability, grid=grid
        )

    def _quietest(self, count: int | None = None, *, among: int | None = None) -> list[float]:
        """Return the least noise that rounds are charged by, ascending; by default all rounds'.

        Every choice of ``count`` rounds among the first ``among`` costs at most what these cost.
        """
        known = self.rounds if among is None else among
        noises = sorted(self.charged_noise_of(t) for t in range(1, known + 1))
        return noises if count is None else noises[:count]

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
