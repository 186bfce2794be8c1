"""Does a plan say what its scenario says? Recomputed on the device, before anything else.

Server and device get the scenario and the plan side by side, and different parts of the code read
different ones. What both of them say must be one thing, or a run could be announced with one number
and done with another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from shared.config import ExampleSection, PrivacySection, RunConfig
from shared.errors import SchemaMismatch
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of

# Calibration may differ in its last bits from one machine to another.
_ROUNDING = 1e-6


def require_agreement(config: RunConfig, plan: PrivacyPlan) -> None:
    """Refuse a plan that is not the one of its scenario.

    The plan is made again from the scenario. Only two things are taken from the plan that was
    sent: the size of the population, which a device cannot know, and noise that the scenario
    derives from an epsilon, which is then checked to reach it.

    Args:
        config: the scenario.
        plan: what came with it.

    Raises:
        SchemaMismatch: naming every field that differs, with both values.
        ConfigError: if no plan can be made from the scenario.
    """
    found = list(_outline(config, plan))
    if not found:
        expected = plan_of(_with_noise_of(config, plan), population=plan.population)
        found = [*_differences(plan, expected, ""), *_beyond(plan, config.privacy, "")]
        if plan.example is not None:
            found += _beyond(plan.example, config.example, "example.")
    if found:
        msg = f"The plan is not that of the scenario: {'; '.join(found)}."
        raise SchemaMismatch(msg, hint="Plan and scenario must come from one run.")


def _outline(config: RunConfig, plan: PrivacyPlan) -> Iterator[str]:
    """Find that plan and scenario are not of one kind, so that no field can be compared."""
    mode = config.privacy.mode
    if plan.mode != mode:
        yield f"mode: the plan says {plan.mode!r}, the scenario {mode!r}"
    said = config.example.used and mode not in {"none", "example"}
    if said != (plan.example is not None):
        says, lacks = ("scenario", "plan") if said else ("plan", "scenario")
        yield f"example: the {says} has DP-SGD inside each client, the {lacks} has not"


def _with_noise_of(config: RunConfig, plan: PrivacyPlan) -> RunConfig:
    """Return the scenario with derived noise filled in, so that nothing is calibrated again."""
    changes: dict[str, object] = {"privacy": _filled(config.privacy, plan)}
    if plan.example is not None:
        changes["example"] = _filled(config.example, plan.example)
    return config.model_copy(update=changes)


def _filled(
    said: PrivacySection | ExampleSection, plan: PrivacyPlan
) -> PrivacySection | ExampleSection:
    """Return a section with the plan's noise instead of an epsilon, and without a cap."""
    noise = plan.noise_multiplier if said.epsilon is not None else said.noise_multiplier
    return said.model_copy(update={"noise_multiplier": noise, "epsilon": None, "cap": None})


def _differences(plan: PrivacyPlan, expected: PrivacyPlan, prefix: str) -> Iterator[str]:
    """Compare every field but the cap, which has its own rule."""
    for field in fields(PrivacyPlan):
        found, wanted = getattr(plan, field.name), getattr(expected, field.name)
        if isinstance(found, PrivacyPlan) and isinstance(wanted, PrivacyPlan):
            yield from _differences(found, wanted, f"{prefix}{field.name}.")
        elif field.name != "cap" and found != wanted:
            name = f"{prefix}{field.name}"
            yield f"{name}: the plan says {_shown(found)}, the scenario {_shown(wanted)}"


def _beyond(plan: PrivacyPlan, said: PrivacySection | ExampleSection, prefix: str) -> Iterator[str]:
    """Find that derived noise, or the cap, allows more epsilon than the scenario says."""
    if plan.mode == "none":
        return
    if said.epsilon is not None and not plan.epsilon() <= said.epsilon * (1 + _ROUNDING):
        spends = f"{plan.epsilon():.6g}"
        yield f"{prefix}epsilon: the plan spends {spends}, the scenario says {said.epsilon:g}"
    cap = said.cap if said.cap is not None else said.epsilon
    if cap is not None and not (plan.cap is not None and plan.cap <= cap):
        yield f"{prefix}cap: the plan says {plan.cap!r}, the scenario {cap!r}"


def _shown(value: object) -> str:
    """Write a value; the words of an enum as words."""
    return repr(str(value)) if isinstance(value, str) else repr(value)
