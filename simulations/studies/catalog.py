"""Which studies there are; one module each."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import cast

from shared.errors import InvalidValue
from shared.registry import suggestion
from simulations.studies.protocol import Study

MODULES = MappingProxyType(
    {
        "late-or-early": "late_or_early",
        "leakage-utility": "leakage_utility",
        "model-size": "model_size",
        "targets": "targets",
    }
)


def study(name: str) -> Study:
    """Return one study, importing no other.

    Raises:
        InvalidValue: for an unknown name, with the nearest known one.
    """
    if name not in MODULES:
        msg = f"study={name!r}, expected one of: {', '.join(MODULES)}."
        raise InvalidValue(msg, hint=suggestion(name, MODULES))
    module = import_module(f"simulations.studies.{MODULES[name]}")
    return cast("Study", module.STUDY)


def studies() -> list[Study]:
    """Return all studies by name."""
    return [study(name) for name in MODULES]
