"""The terms of a privacy plan: who is sampled, what is clipped, which noise is added.

This is all that the sampler, the clip and the mechanism read; what the accountant is charged for it
is in :mod:`shared.privacy.plan`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self, get_args

from shared import validate
from shared.canonical import canonical_json, sha256_hex
from shared.errors import ConflictingSettings
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.distributed import DistributedSkellam
from shared.privacy.events import NeighboringRelation, PrivacyUnit
from shared.privacy.mechanism import GaussianMechanism
from shared.privacy.noise import NoiseKind
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.planform import Mode, NoiseForm, choice, plan_fields, plan_to_json
from shared.privacy.planrules import require_fields_of_mode, require_mechanism_of_mode
from shared.privacy.quantile import QuantileClipping
from shared.privacy.terms import DistributedTerms
from shared.privacy.vote import VoteTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """Who is sampled, what is clipped, which noise is added: the fields of a plan, all public.

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
    example: Self | None = None
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

    def digest(self) -> str:
        """Return the SHA-256 digest of the plan's canonical JSON."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, object]:
        """Return the stored form; one that version 1 could express has the form of version 1."""
        return plan_to_json({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a stored plan of any version.

        Raises:
            SchemaMismatch: for an unknown schema version or other fields.
            InvalidValue: if a field is out of range.
        """
        known = plan_fields(value, {field.name for field in fields(cls)})
        inner = known.get("example")
        return cls(**{**known, "example": None if inner is None else cls.from_json(inner)})

    def _quietest(self, count: int | None = None, *, among: int | None = None) -> list[float]:
        """Return the least noise that rounds are charged by, ascending; by default all rounds'.

        Every choice of ``count`` rounds among the first ``among`` costs at most what these cost.
        """
        known = self.rounds if among is None else among
        noises = sorted(self.charged_noise_of(t) for t in range(1, known + 1))
        return noises if count is None else noises[:count]
