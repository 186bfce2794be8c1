"""The form of a plan: its words, what belongs together, and how it is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from typing import Any, Literal, TypeVar

from shared.errors import InvalidValue, SchemaMismatch
from shared.privacy.accountant import relation_of
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.events import PrivacyUnit
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.quantile import QuantileClipping
from shared.privacy.terms import DistributedTerms
from shared.privacy.vote import VoteTerms
from shared.registry import suggestion

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
# Version 3 added this one.
_SINCE_3 = ("schedule",)
# Version 4 added this one.
_SINCE_4 = ("vote",)
_DEFAULTS: dict[str, object] = {"noise": "gaussian"}
_TERMS: dict[str, Callable[[object], object]] = {
    "quantile": QuantileClipping.from_json,
    "correlated": CorrelatedTerms.from_json,
    "distributed": DistributedTerms.from_json,
    "schedule": NoiseSchedule.from_json,
    "vote": VoteTerms.from_json,
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


def plan_to_json(fields_of_plan: Mapping[str, Any]) -> dict[str, object]:
    """Return the stored form of a plan's fields, in the oldest version that can express it."""
    values = dict(fields_of_plan)
    version = 4
    for younger in (_SINCE_4, _SINCE_3):
        if any(values[name] is not None for name in younger):
            break
        version -= 1
        values = {name: value for name, value in values.items() if name not in younger}
    if version == 2 and all(values[name] == _DEFAULTS.get(name) for name in _SINCE_2):
        return {"schema": 1, **{k: v for k, v in values.items() if k not in _SINCE_2}}
    for name in ("example", *_TERMS):
        if values.get(name) is not None:
            values[name] = values[name].to_json()
    return {"schema": version, **values}


def plan_fields(value: object, names: Set[str]) -> dict[str, Any]:
    """Read the fields of a stored plan; a plan inside it stays as it was stored.

    Args:
        value: the stored form, or its text.
        names: the fields of the newest version.

    Raises:
        SchemaMismatch: for an unknown schema version or other fields.
        InvalidValue: for a word that this version does not know.
    """
    try:
        data = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        data = None
    third = set(names) - set(_SINCE_4)
    second = third - set(_SINCE_3)
    forms = {1: second - set(_SINCE_2), 2: second, 3: third, 4: set(names)}
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
