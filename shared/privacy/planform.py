"""The form of a plan: its words, what belongs together, and how it is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from shared import validate
from shared.errors import ConflictingSettings, InvalidValue, SchemaMismatch
from shared.privacy.accountant import relation_of
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.events import PrivacyUnit
from shared.privacy.quantile import QuantileClipping
from shared.privacy.terms import DistributedTerms
from shared.registry import suggestion

if TYPE_CHECKING:
    from shared.privacy.plan import PrivacyPlan

Mode = Literal["none", "example", "client-central", "client-distributed"]
NoiseForm = Literal["gaussian", "correlated", "skellam"]
CLIENT_MODES = ("client-central", "client-distributed")
UNIT_OF_MODE = {
    "example": PrivacyUnit.EXAMPLE,
    "client-central": PrivacyUnit.CLIENT,
    "client-distributed": PrivacyUnit.CLIENT,
}
CLIP_OF_MODE = {
    "example": "max_grad_norm",
    "client-central": "clipping_norm",
    "client-distributed": "clipping_norm",
}
# Version 2 added these; a plan that uses none of them is stored as version 1, with its old digest.
_SINCE_2 = ("noise", "example", "quantile", "correlated", "distributed")
_DEFAULTS: dict[str, object] = {"noise": "gaussian"}
_TERMS: dict[str, Callable[[object], object]] = {
    "quantile": QuantileClipping.from_json,
    "correlated": CorrelatedTerms.from_json,
    "distributed": DistributedTerms.from_json,
}

_Word = TypeVar("_Word", bound=str)


def choice(name: str, value: str, known: tuple[_Word, ...]) -> _Word:
    """Return the member of a closed set of words, or raise with the nearest one.

    Raises:
        InvalidValue: for any other word.
    """
    for word in known:
        if word == value:
            return word
    msg = f"{name}={value!r}, expected one of: {', '.join(known)}."
    raise InvalidValue(msg, hint=suggestion(str(value), known))


def unit_of(value: str) -> PrivacyUnit:
    """Read a privacy unit.

    Raises:
        InvalidValue: for any other word.
    """
    return PrivacyUnit(choice("privacy_unit", value, tuple(map(str, PrivacyUnit))))


def plan_to_json(plan: PrivacyPlan) -> dict[str, object]:
    """Return the stored form of a plan, in the oldest version that can express it."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    if all(values[name] == _DEFAULTS.get(name) for name in _SINCE_2):
        return {"schema": 1, **{k: v for k, v in values.items() if k not in _SINCE_2}}
    for name in ("example", *_TERMS):
        if values[name] is not None:
            values[name] = values[name].to_json()
    return {"schema": 2, **values}


def plan_fields(value: object) -> dict[str, Any]:
    """Read the fields of a stored plan; a plan inside it stays as it was stored.

    Raises:
        SchemaMismatch: for an unknown schema version or other fields.
        InvalidValue: for a word that this version does not know.
    """
    from shared.privacy.plan import PrivacyPlan

    try:
        data = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        data = None
    names = {field.name for field in fields(PrivacyPlan)}
    forms = {1: names - set(_SINCE_2), 2: names}
    schema = data.get("schema") if isinstance(data, dict) else None
    expected = forms.get(schema) if type(schema) is int else None
    if not isinstance(data, dict) or expected is None or set(data) != expected | {"schema"}:
        msg = f"a stored plan does not have the fields of a schema in {sorted(forms)}."
        raise SchemaMismatch(msg, hint="A newer fedslm may have written it.")
    known = {name: data[name] for name in expected}
    if known["unit"] is not None:
        known["unit"] = unit_of(known["unit"])
    if known["neighboring_relation"] is not None:
        known["neighboring_relation"] = relation_of(known["neighboring_relation"])
    for name, read in _TERMS.items():
        if known.get(name) is not None:
            known[name] = read(known[name])
    return known


def require_fields_of_mode(plan: PrivacyPlan) -> None:
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


def require_mechanism_of_mode(plan: PrivacyPlan) -> None:
    """Require that noise, its terms and the mode belong together.

    Raises:
        ConflictingSettings: naming what does not.
    """
    for condition, what in _broken_rules(plan):
        if condition:
            msg = f"mode={plan.mode!r}, noise={plan.noise!r}: {what}."
            raise ConflictingSettings(msg)


def _broken_rules(plan: PrivacyPlan) -> tuple[tuple[bool, str], ...]:
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
