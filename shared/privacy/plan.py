"""One frozen plan couples sampling, clipping, noise and what the accountant is charged.

Everything that decides the guarantee is in :class:`PrivacyPlan`, and nothing else is: the
mechanism, the sampler and the ledger all read the plan, so what runs is what is accounted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar, get_args

from shared import validate
from shared.canonical import canonical_json, sha256_hex
from shared.errors import ConflictingSettings, InvalidValue, PrivacyBudgetExhausted, SchemaMismatch
from shared.privacy.accountant import ONLINE, REPORT, AccountantName, epsilon_of, relation_of
from shared.privacy.advice import NO_PRIVACY, numbers_to_question
from shared.privacy.calibration import calibrate_noise_multiplier
from shared.privacy.events import (
    GaussianEvent,
    NeighboringRelation,
    NonPrivateEvent,
    PrivacyEvent,
    PrivacyUnit,
)
from shared.privacy.mechanism import GaussianMechanism
from shared.privacy.noise import OS_ENTROPY, SEEDED, NoiseKind
from shared.registry import suggestion

Mode = Literal["none", "example", "client-central"]
PLAN_SCHEMA = 1
UNIT_OF_MODE = {"example": PrivacyUnit.EXAMPLE, "client-central": PrivacyUnit.CLIENT}
_CLIP_OF_MODE = {"example": "max_grad_norm", "client-central": "clipping_norm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What will be released, about whom, with which noise; all of it public.

    Build one with :func:`make_plan`. In mode ``example`` the releases of one client are
    accounted: every local step of every round it may take part in, amplified by its own secret
    Poisson sampling of examples, never by the sampling of clients. In mode ``client-central``
    every round is one release about every client of the population, amplified by the secret
    Poisson sampling of clients.

    Attributes:
        mode: ``"none"``, ``"example"`` or ``"client-central"``.
        unit: whose presence is hidden; ``None`` in mode none.
        neighboring_relation: ``None`` in mode none.
        delta: of every epsilon of this plan; ``None`` in mode none.
        noise_multiplier: noise divided by the clip; ``None`` in mode none.
        clipping_norm: clip of a whole client update (mode client-central), else ``None``.
        max_grad_norm: clip of one example's gradient (mode example), else ``None``.
        sampling_probability: of an example in a step, or of a client in a round; 1 in mode none.
        releases_per_round: local steps (mode example), else 1.
        rounds: server rounds planned.
        max_participations: enforced cap on the rounds of one client, or ``None``.
        population: number of clients.
        dataset_size: public lower bound on the number of examples of a client, or ``None``.
        noise_source: ``"os-entropy"`` or ``"seeded-simulation"``.
        cap: epsilon that the ledger may not pass; ``None`` in mode none.

    Raises:
        InvalidValue: if a field is missing, superfluous for the mode, or out of range.
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

    def __post_init__(self) -> None:
        _choice("mode", self.mode, get_args(Mode))
        _choice("noise_source", self.noise_source, get_args(NoiseKind))
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
        _require_fields_of_mode(self)

    @property
    def participations(self) -> int:
        """Return the largest number of rounds that one client can take part in."""
        return min(self.rounds, self.max_participations or self.rounds)

    @property
    def expected_cohort(self) -> float:
        """Return the public mean size of a cohort; the denominator of the mean."""
        return self.sampling_probability * self.population

    @property
    def mechanism(self) -> GaussianMechanism:
        """Return the server's mechanism (mode client-central).

        Raises:
            ConflictingSettings: in another mode, where the server adds no noise.
        """
        if self.clipping_norm is None or self.noise_multiplier is None:
            msg = f"mode={self.mode!r} has no noise at the server."
            raise ConflictingSettings(msg)
        return GaussianMechanism(
            noise_multiplier=self.noise_multiplier,
            clipping_norm=self.clipping_norm,
            sampling_probability=self.sampling_probability,
        )

    def event_for_participation(self) -> PrivacyEvent:
        """Return what one round costs its subject: a client, or the whole population."""
        return self._event(self.releases_per_round)

    def total_events(self) -> PrivacyEvent:
        """Return what the whole plan costs one subject at worst."""
        return self._event(self.releases_per_round * self._charged(self.rounds))

    def releases_after(self, rounds: int) -> int:
        """Return the number of noised releases about one subject after some rounds."""
        return self.releases_per_round * self._charged(rounds)

    def epsilon(self, *, accountant: AccountantName = "pld") -> float:
        """Return epsilon of the whole plan, against whoever sees only adapters.

        In mode example it also holds against the server and the network. Infinite in mode none.
        """
        return self._spent(self.total_events(), accountant, REPORT)

    def epsilon_after(self, rounds: int) -> float:
        """Return epsilon after some of the planned rounds (PLD, never above the plan's)."""
        if rounds == 0:
            return 0.0
        validate.positive_integer(rounds=rounds)
        event = self._event(self.releases_per_round * self._charged(rounds))
        spent = self._spent(event, "pld", ONLINE)
        return min(spent, self.epsilon()) if rounds <= self.rounds else spent

    def observer_epsilon(self) -> float:
        """Return epsilon against an observer who knows in which rounds a client took part.

        The sampling of clients hides nothing from such an observer (the network, or whoever reads
        the server's logs), so in mode client-central each participation counts in full, up to the
        cap on participations. In mode example it equals :meth:`epsilon`, which never counted on
        the sampling of clients. It does not protect against a server that sees the clipped
        updates themselves; see :meth:`server_epsilon`.
        """
        if self.mode != "client-central" or self.noise_multiplier is None:
            return self.epsilon()
        event = GaussianEvent(noise_multiplier=self.noise_multiplier, count=self.participations)
        return self._spent(event, "pld", REPORT)

    def server_epsilon(self) -> float:
        """Return epsilon against the server itself: infinite unless clients add the noise."""
        return self.epsilon() if self.mode == "example" else math.inf

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
        )

    def digest(self) -> str:
        """Return the SHA-256 digest of the plan's canonical JSON."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema": PLAN_SCHEMA, **values}

    @classmethod
    def from_json(cls, value: object) -> PrivacyPlan:
        """Read a stored plan.

        Raises:
            SchemaMismatch: for another schema version or other fields.
            InvalidValue: if a field is out of range.
        """
        try:
            data = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            data = None
        names = {field.name for field in fields(cls)}
        whole = isinstance(data, dict) and set(data) == names | {"schema"}
        if not (isinstance(data, dict) and whole and data["schema"] == PLAN_SCHEMA):
            msg = f"a stored plan does not have the fields of schema {PLAN_SCHEMA}."
            raise SchemaMismatch(msg, hint="A newer fedslm may have written it.")
        known = {name: data[name] for name in names}
        if known["unit"] is not None:
            known["unit"] = unit_of(known["unit"])
        if known["neighboring_relation"] is not None:
            known["neighboring_relation"] = relation_of(known["neighboring_relation"])
        return cls(**known)

    def _event(self, count: int) -> PrivacyEvent:
        """Return ``count`` releases of this plan."""
        if self.noise_multiplier is None:
            return NonPrivateEvent()
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier,
            sampling_probability=self.sampling_probability,
            count=count,
        )

    def _charged(self, rounds: int) -> int:
        """Return how many of the first ``rounds`` rounds one subject is charged for."""
        if self.mode == "example" and self.max_participations is not None:
            return min(rounds, self.max_participations)
        return rounds

    def _spent(self, event: PrivacyEvent, accountant: AccountantName, interval: float) -> float:
        """Return epsilon of one event at this plan's delta and relation."""
        if self.delta is None or self.neighboring_relation is None:
            return math.inf
        return epsilon_of(
            event,
            delta=self.delta,
            relation=self.neighboring_relation,
            accountant=accountant,
            interval=interval,
        )


def make_plan(
    *,
    mode: str,
    rounds: int,
    population: int,
    unit: str | None = None,
    neighboring_relation: str | None = None,
    delta: float | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    clipping_norm: float | None = None,
    max_grad_norm: float | None = None,
    sampling_probability: float | None = None,
    releases_per_round: int = 1,
    max_participations: int | None = None,
    dataset_size: int | None = None,
    noise_source: str = OS_ENTROPY,
    cap: float | None = None,
) -> PrivacyPlan:
    """Build a plan from what a user says, deriving noise from epsilon.

    Nothing about the guarantee has a default: a private mode needs unit, relation, delta, its own
    clip, and exactly one of ``epsilon`` and ``noise_multiplier``. Settings that belong to another
    mode are dropped, so that ``mode="none"`` alone turns a plan into its non-private twin.

    Args:
        mode: ``"none"``, ``"example"`` or ``"client-central"``.
        rounds: server rounds, >= 1.
        population: number of clients, >= 1.
        unit: ``"example"`` or ``"client"``; must be the one that the mode protects.
        neighboring_relation: ``"add-or-remove-one"`` or ``"replace-one"``.
        delta: in ``(0, 1)``.
        epsilon: target of the whole plan, > 0.
        noise_multiplier: noise divided by the clip, > 0.
        clipping_norm: clip of a client update, for client-central.
        max_grad_norm: clip of an example's gradient, for example.
        sampling_probability: of an example in a step, or of a client in a round.
        releases_per_round: local steps, for example.
        max_participations: enforced cap on one client's rounds.
        dataset_size: public lower bound on the examples of a client, for the warning about delta.
        noise_source: ``"os-entropy"`` or ``"seeded-simulation"``.
        cap: epsilon the ledger may not pass; the target or planned epsilon if not given.

    Returns:
        The plan.

    Raises:
        InvalidValue: if something is missing or out of range.
        ConflictingSettings: if unit and mode disagree, or both or neither of epsilon and
            noise multiplier are given.
        CalibrationError: if no noise reaches the target.
        PrivacyBudgetExhausted: if the plan's epsilon is above the cap.
    """
    chosen = _choice("mode", mode, get_args(Mode))
    base = PrivacyPlan(
        mode="none",
        unit=None,
        neighboring_relation=None,
        delta=None,
        noise_multiplier=None,
        clipping_norm=None,
        max_grad_norm=None,
        sampling_probability=1.0,
        releases_per_round=1,
        rounds=rounds,
        max_participations=max_participations,
        population=population,
        dataset_size=dataset_size,
        noise_source=_choice("noise_source", noise_source, get_args(NoiseKind)),
        cap=None,
    )
    if chosen == "none":
        return base
    given = {
        "privacy_unit": unit,
        "neighboring_relation": neighboring_relation,
        "delta": delta,
        "sampling_probability": sampling_probability,
        _CLIP_OF_MODE[chosen]: clipping_norm if chosen == "client-central" else max_grad_norm,
    }
    missing = ", ".join(name for name, value in given.items() if value is None)
    if missing:
        msg = f"mode={mode!r} needs {missing}, which has no default."
        raise InvalidValue(msg)
    if unit_of(str(unit)) is not UNIT_OF_MODE[chosen]:
        msg = f"mode={mode!r} protects the unit {str(UNIT_OF_MODE[chosen])!r}, not {unit!r}."
        raise ConflictingSettings(msg)
    if (epsilon is None) == (noise_multiplier is None):
        msg = f"epsilon={epsilon!r} and noise_multiplier={noise_multiplier!r}, expected one."
        raise ConflictingSettings(msg, hint="Give one of the two; the other is derived.")
    draft = replace(
        base,
        mode=chosen,
        unit=UNIT_OF_MODE[chosen],
        neighboring_relation=relation_of(str(neighboring_relation)),
        delta=delta,
        # A draft needs some noise; with a target epsilon it is replaced below.
        noise_multiplier=_float(1.0 if noise_multiplier is None else noise_multiplier),
        clipping_norm=_float(clipping_norm) if chosen == "client-central" else None,
        max_grad_norm=_float(max_grad_norm) if chosen == "example" else None,
        sampling_probability=_float(sampling_probability) or 0.0,
        releases_per_round=releases_per_round if chosen == "example" else 1,
        cap=_float(next((c for c in (cap, epsilon) if c is not None), 1.0)),
    )
    return _within_cap(_calibrated(draft, epsilon), keep_cap=cap is not None or epsilon is not None)


def unit_of(value: str) -> PrivacyUnit:
    """Read a privacy unit.

    Raises:
        InvalidValue: for any other word.
    """
    return PrivacyUnit(_choice("privacy_unit", value, tuple(map(str, PrivacyUnit))))


def _calibrated(draft: PrivacyPlan, epsilon: float | None) -> PrivacyPlan:
    """Replace the draft's noise by what a target epsilon asks for, if there is a target."""
    if epsilon is None or draft.delta is None or draft.neighboring_relation is None:
        return draft
    noise = calibrate_noise_multiplier(
        epsilon=epsilon,
        delta=draft.delta,
        relation=draft.neighboring_relation,
        sampling_probability=draft.sampling_probability,
        count=draft.releases_after(draft.rounds),
    )
    return replace(draft, noise_multiplier=noise)


def _within_cap(plan: PrivacyPlan, *, keep_cap: bool) -> PrivacyPlan:
    """Refuse a plan above its cap; without a stated cap the planned epsilon becomes it."""
    spends = plan.epsilon()
    if not keep_cap:
        if not math.isfinite(spends):
            msg = f"noise_multiplier={plan.noise_multiplier!r} gives no finite epsilon."
            raise InvalidValue(msg, hint="Use more noise or a larger delta.")
        return replace(plan, cap=spends)
    if plan.cap is not None and not spends <= plan.cap:
        msg = f"the plan spends epsilon={spends:.4g} at delta={plan.delta!r}, cap={plan.cap!r}."
        hint = "Plan more noise or fewer rounds, or agree on a higher cap."
        raise PrivacyBudgetExhausted(msg, hint=hint, spent=0.0, requested=spends, cap=plan.cap)
    return plan


def _require_fields_of_mode(plan: PrivacyPlan) -> None:
    """Require the fields that a mode needs and refuse those it does not have."""
    private = {
        "unit": plan.unit,
        "neighboring_relation": plan.neighboring_relation,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "cap": plan.cap,
    }
    clips = {"clipping_norm": plan.clipping_norm, "max_grad_norm": plan.max_grad_norm}
    own = _CLIP_OF_MODE.get(plan.mode)
    for name, value in {**private, **clips}.items():
        wanted = plan.mode != "none" and (name in private or name == own)
        if (value is not None) != wanted:
            msg = f"mode={plan.mode!r} with {name}={value!r}."
            raise InvalidValue(msg, hint="Build the plan with make_plan.")
    for name, number in {
        "noise_multiplier": plan.noise_multiplier,
        "cap": plan.cap,
        **clips,
    }.items():
        if number is not None:
            validate.positive(**{name: number})
    if plan.delta is not None:
        validate.open_unit(delta=plan.delta)
    if plan.mode != "none" and UNIT_OF_MODE[plan.mode] != plan.unit:
        msg = f"mode={plan.mode!r} with unit={plan.unit!r}, expected {UNIT_OF_MODE[plan.mode]}."
        raise InvalidValue(msg)
    if plan.mode != "example" and plan.releases_per_round != 1:
        msg = f"releases_per_round={plan.releases_per_round!r}, expected 1 in mode {plan.mode!r}."
        raise InvalidValue(msg)


def _float(value: float | None) -> float | None:
    """Store whole numbers as floats, so that 1 and 1.0 give one digest; leave the rest alone."""
    given: object = value
    return float(given) if isinstance(given, int) and not isinstance(given, bool) else value


_Word = TypeVar("_Word", bound=str)


def _choice(name: str, value: str, known: tuple[_Word, ...]) -> _Word:
    """Return the member of a closed set of words, or raise with the nearest one."""
    for word in known:
        if word == value:
            return word
    msg = f"{name}={value!r}, expected one of: {', '.join(known)}."
    raise InvalidValue(msg, hint=suggestion(str(value), known))
