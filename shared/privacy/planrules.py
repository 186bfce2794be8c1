"""Which fields, mechanisms and terms of a plan belong together."""

from __future__ import annotations

from typing import Protocol

from shared import validate
from shared.errors import ConflictingSettings, InvalidValue
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.events import NeighboringRelation, PrivacyUnit
from shared.privacy.noise import NoiseKind
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.planform import CLIENT_MODES, CLIP_OF_MODE, UNIT_OF_MODE, Mode, NoiseForm
from shared.privacy.quantile import QuantileClipping
from shared.privacy.terms import DistributedTerms
from shared.privacy.vote import VoteTerms


class _PlanForm(Protocol):
    """A plan as these rules see it; every :class:`shared.privacy.plan.PrivacyPlan` is one."""

    @property
    def mode(self) -> Mode: ...
    @property
    def unit(self) -> PrivacyUnit | None: ...
    @property
    def neighboring_relation(self) -> NeighboringRelation | None: ...
    @property
    def delta(self) -> float | None: ...
    @property
    def noise_multiplier(self) -> float | None: ...
    @property
    def clipping_norm(self) -> float | None: ...
    @property
    def max_grad_norm(self) -> float | None: ...
    @property
    def sampling_probability(self) -> float: ...
    @property
    def releases_per_round(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def population(self) -> int: ...
    @property
    def noise_source(self) -> NoiseKind: ...
    @property
    def cap(self) -> float | None: ...
    @property
    def noise(self) -> NoiseForm: ...
    @property
    def quantile(self) -> QuantileClipping | None: ...
    @property
    def correlated(self) -> CorrelatedTerms | None: ...
    @property
    def distributed(self) -> DistributedTerms | None: ...
    @property
    def schedule(self) -> NoiseSchedule | None: ...
    @property
    def vote(self) -> VoteTerms | None: ...
    @property
    def example(self) -> _PlanForm | None: ...


def require_fields_of_mode(plan: _PlanForm) -> None:
    """Require the fields that a mode needs and refuse those it does not have.

    Raises:
        InvalidValue: naming the field.
    """
    private = {
        "unit": plan.unit,
        "neighboring_relation": plan.neighboring_relation,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "cap": plan.cap,
    }
    clips = {"clipping_norm": plan.clipping_norm, "max_grad_norm": plan.max_grad_norm}
    own = CLIP_OF_MODE.get(plan.mode)
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


def require_mechanism_of_mode(plan: _PlanForm) -> None:
    """Require that noise, its terms and the mode belong together.

    Raises:
        ConflictingSettings: naming what does not.
    """
    for condition, what in _broken_rules(plan):
        if condition:
            msg = f"mode={plan.mode!r}, noise={plan.noise!r}: {what}."
            raise ConflictingSettings(msg)


def _broken_rules(plan: _PlanForm) -> tuple[tuple[bool, str], ...]:
    """Return every rule about mechanisms: whether it is broken, and what it says."""
    distributed, correlated = plan.distributed, plan.correlated
    example = plan.example
    return (
        (
            (plan.mode == "client-distributed") != (plan.noise == "skellam"),
            "Skellam noise is that of client-distributed, and of no other mode",
        ),
        (
            (distributed is not None) != (plan.noise == "skellam"),
            "the terms of distributed noise go with Skellam noise",
        ),
        (
            distributed is not None and distributed.min_cohort > plan.population,
            "min_cohort is above the population",
        ),
        (
            plan.noise == "correlated" and plan.mode != "client-central",
            "correlated noise is added by the server, in client-central",
        ),
        (
            (correlated is not None) != (plan.noise == "correlated"),
            "bands and separation go with correlated noise",
        ),
        (
            correlated is not None and correlated.rounds != plan.rounds,
            "correlated noise is made for another number of rounds",
        ),
        (
            correlated is not None and plan.sampling_probability != 1.0,
            "correlated noise counts on no sampling",
        ),
        (
            plan.quantile is not None
            and (plan.mode != "client-central" or plan.noise != "gaussian"),
            "quantile clipping goes with independent Gaussian noise in client-central",
        ),
        (
            plan.quantile is not None and plan.quantile.initial != plan.clipping_norm,
            "quantile clipping starts at the clipping norm",
        ),
        (
            plan.schedule is not None
            and (
                plan.mode not in {"example", "client-central"}
                or plan.noise != "gaussian"
                or plan.quantile is not None
            ),
            "a noise schedule goes with independent Gaussian noise and a fixed clip",
        ),
        (
            plan.vote is not None and (plan.mode != "client-central" or plan.noise != "gaussian"),
            "a vote goes with independent Gaussian noise in client-central",
        ),
        (
            plan.vote is not None and example is not None,
            "a vote is about held-out records, which DP-SGD inside a client does not protect",
        ),
        (
            example is not None and plan.mode not in CLIENT_MODES,
            "DP-SGD inside a client is said once, or beside a client mode",
        ),
        (
            example is not None
            and (
                example.mode != "example"
                or example.rounds != plan.rounds
                or example.population != plan.population
                or example.noise_source != plan.noise_source
            ),
            "the plan inside each client is not one of mode example for the same run",
        ),
    )
