"""What ``fedslm plan`` says, as one JSON object with stable keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.adaptermethod import METHODS
from shared.adapterterms import adapter_terms
from shared.baseshape import BaseShape
from shared.config import RunConfig
from shared.configfile import parse_override, resolve
from shared.devicemix import MixPlan, counts_of, plan_mix
from shared.deviceplan import Planner
from shared.devices import DeviceProfile, speed_of
from shared.devicesettings import Choice, DevicePlan, Limits, setup_of
from shared.errors import ConfigError, ConflictingSettings, PrivacyError
from shared.lora import AdapterSpec
from shared.planeffect import PrivacyEffect, effect_of
from shared.rankrules import may_mix_ranks
from simulations.basepath import base_path
from simulations.planranks import RANK, mixed_lines, own_rank, scale_line

UNKNOWN = "not computed: the population comes with the data"
NO_PLAN = "mode none: there is no privacy plan"
NEUTRAL = "none: the privacy plan does not read it"


def device_report(
    config: RunConfig,
    *,
    base_dir: Path,
    profile: DeviceProfile,
    limits: Limits,
) -> dict[str, Any]:
    """Plan a scenario for a device and report it.

    Args:
        config: the scenario.
        base_dir: what relative paths of the scenario are relative to.
        profile: of the device.
        limits: what a round may take.

    Raises:
        ConflictingSettings: if nothing fits.
        ModelNotFound: if the base cannot be found.
    """
    shape, spec = read_base(config, base_dir=base_dir)
    planner = Planner(config, shape, spec, profile=profile, limits=limits)
    return report_of(config, planner.plan(), planner, spec)


def mix_report(config: RunConfig, *, base_dir: Path, limits: Limits) -> dict[str, Any]:
    """Plan a scenario for every profile of its mix and report it.

    Raises:
        ConflictingSettings: if a profile cannot take part, or there is no mix.
        ModelNotFound: if the base cannot be found.
    """
    shape, spec = read_base(config, base_dir=base_dir)
    mix = plan_mix(config, shape, spec, limits=limits)
    counts = counts_of(config)
    shared: list[str] = []
    own_ranks = may_mix_ranks(config)
    for plan in mix.together.values():
        said = [c for c in plan.choices if c.moved and not c.key.startswith("performance.")]
        common = [c for c in said if not (own_ranks and c.key == RANK)]
        shared = [*set_lines(common), *_kept_scale(spec, common)]
    shared += mixed_lines(config, spec, mix.ranks)
    rows = [
        {
            "device": name,
            "share": config.devices.shares[name],
            "clients": None if counts is None else counts.get(name, 0),
            "rank": plan.r,
            "alone_seconds": mix.alone[name].cost.seconds,
            "own": set_lines(c for c in plan.choices if c.key.startswith("performance.")),
            "estimate": _estimate(plan),
        }
        for name, plan in mix.together.items()
    ]
    return {
        "limit_seconds": limits.seconds,
        "limit_from": limits.seconds_from,
        "shared": shared,
        "privacy": effect_text(config, shared) if shared else "the plan stays what it is",
        "devices": rows,
        "clock": _clock_lines(config, mix),
        "slowest": mix.slowest.profile.name,
        "round_seconds": mix.slowest.cost.seconds,
    }


def _clock_lines(config: RunConfig, mix: MixPlan) -> list[str]:
    """Return a simulated clock whose classes are the profiles; none where it is refused."""
    if config.privacy.mode == "client-distributed":
        return []
    plans = mix.together
    columns = {
        "shares": [config.devices.shares[name] for name in plans],
        "step_seconds": [float(f"{plan.cost.step_seconds:.4g}") for plan in plans.values()],
        "upload": [plan.profile.up_bytes_per_second for plan in plans.values()],
        "download": [plan.profile.down_bytes_per_second for plan in plans.values()],
    }
    return [f"clock.{key}={json.dumps(values)}" for key, values in columns.items()]


def read_base(config: RunConfig, *, base_dir: Path) -> tuple[BaseShape, AdapterSpec]:
    """Return the shape of a scenario's base, and its adapter."""
    from client.baseshape import read_shape

    if config.mixture.adapters > 1:
        msg = "mixture.adapters is above 1, and the planner knows costs of one adapter alone."
        hint = "Plan with --set mixture.adapters=1 and lora.r times as large: about the same cost."
        raise ConflictingSettings(msg, hint=hint)
    terms = adapter_terms(config)
    return read_shape(
        base_path(config.model.base, base_dir=base_dir),
        revision=config.model.revision,
        r=terms.r,
        alpha=terms.alpha,
        target_modules=terms.target_modules,
        rslora=terms.rslora,
        method=terms.method,
        prompt_tokens=terms.prompt_tokens,
    )


def limits_of(
    config: RunConfig, *, max_seconds: float | None, rounds_per_day: float | None
) -> Limits:
    """Return what a round may take: the user's limit, else the server's deadline."""
    clients = config.clients
    share = 1.0
    if clients.cohort is not None and clients.population:
        share = min(1.0, clients.cohort / clients.population)
    told = max_seconds is not None
    return Limits(
        seconds=config.server.deadline_seconds if max_seconds is None else max_seconds,
        seconds_from="--max-seconds" if told else "server.deadline_seconds",
        rounds_per_day=rounds_per_day,
        participation=share,
    )


def report_of(
    config: RunConfig, plan: DevicePlan, planner: Planner, spec: AdapterSpec
) -> dict[str, Any]:
    """Return everything that is said about a plan."""
    proposed = plan.moved(neutral=False)
    return {
        "device": plan.profile.name,
        "profile": plan.profile.model_dump(mode="json"),
        "macs_per_second": speed_of(plan.profile),
        "limit_seconds": plan.limits.seconds,
        "limit_from": plan.limits.seconds_from,
        "rounds_per_day": plan.limits.rounds_per_day,
        "participations_per_day": plan.limits.rounds_of_device,
        "settings": [_choice(config, choice) for choice in plan.choices],
        "set": set_lines(plan.moved(neutral=True)),
        "rank": own_rank(config, plan),
        "proposed": set_lines(proposed) + _kept_scale(spec, proposed),
        "estimate": _estimate(plan),
        "levers": list(_levers(config, plan, planner)),
    }


def set_lines(choices: Iterable[Choice]) -> list[str]:
    """Return the values of ``--set`` that choices stand for."""
    return [f"{choice.key}={_toml(choice.chosen)}" for choice in choices]


def _kept_scale(spec: AdapterSpec, proposed: Iterable[Choice]) -> list[str]:
    """Return the alpha that keeps the adapter's scale at another rank."""
    ranks = [int(choice.chosen) for choice in proposed if choice.key == RANK]
    return [scale_line(spec, r) for r in ranks]


def _choice(config: RunConfig, choice: Choice) -> dict[str, Any]:
    """Return one setting with its effect on the privacy plan."""
    privacy = NEUTRAL
    if not choice.neutral:
        privacy = effect_text(config, set_lines([choice])) if choice.moved else "unchanged"
    return {
        "key": choice.key,
        "scenario": choice.said,
        "chosen": choice.chosen,
        "why": choice.why,
        "own": choice.neutral,
        "privacy": privacy,
    }


def effect_text(config: RunConfig, changes: list[str]) -> str:
    """Say what changes of a scenario do to its privacy plan, or why that cannot be said."""
    if config.privacy.mode == "none":
        return NO_PLAN
    population = config.clients.population
    if population is None and config.privacy.mode != "example":
        return UNKNOWN
    try:
        effect = effect_of(config, changed(config, changes), population=population or 1)
    except (ConfigError, PrivacyError) as error:
        return f"refused: {error.message}"
    return str(effect) if isinstance(effect, PrivacyEffect) else NO_PLAN


def changed(config: RunConfig, changes: list[str]) -> RunConfig:
    """Return a scenario with some settings changed, checked like any other.

    Raises:
        ConfigError: if the result is no valid scenario.
    """
    tables = {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in config.model_dump(mode="json").items()
    }
    for change in changes:
        key, value = parse_override(change)
        section, _, leaf = key.partition(".")
        tables[section][leaf] = value
    return resolve(tables, source="plan").config


def _estimate(plan: DevicePlan) -> dict[str, Any]:
    """Return what a round costs, in numbers."""
    cost, memory = plan.cost, plan.cost.memory
    return {
        "memory_bytes": memory.total,
        "memory_of": {
            "runtime": memory.runtime,
            "base": memory.base,
            "cache": memory.cache,
            "activations": memory.activations,
            "adapter": memory.adapter,
            "workspace": memory.workspace,
        },
        "step_seconds": cost.step_seconds,
        "round_seconds": cost.seconds,
        "transfer_seconds": cost.transfer_seconds,
        "bytes_up": cost.bytes_up,
        "bytes_down": cost.bytes_down,
        "joules": cost.joules,
    }


def _levers(config: RunConfig, plan: DevicePlan, planner: Planner) -> Iterable[dict[str, Any]]:
    """Yield what the settings that the planner never moves alone would change."""
    setup = setup_of(config)
    base = replace(plan.setup, local_steps=setup.local_steps)
    half, r = max(1, setup.local_steps // 2), plan.r
    cases = [
        ([f"clients.local_steps={half}"], replace(base, local_steps=half), r),
        ([f"clients.local_steps={2 * half}"], replace(base, local_steps=2 * half), r),
    ]
    batch = max(1, setup.batch_size // 2)
    smaller = [f"clients.batch_size={batch}"]
    for section in ("privacy", "example"):
        share = getattr(config, section).sampling_probability
        if share is not None and setup.private:
            smaller.append(f"{section}.sampling_probability={share * batch / setup.batch_size}")
    cases.append((smaller, replace(base, batch_size=batch), r))
    thin = max(1, config.lora.r // 2)
    if config.lora.variant not in METHODS:
        cases.append(([f"lora.r={thin}"], base, thin))
    for changes, lever, rank in cases:
        if all(_is_said(config, change) for change in changes):
            continue
        cost = planner.cost(lever, rank)
        yield {
            "set": changes,
            "round_seconds": cost.seconds,
            "bytes_up": cost.bytes_up,
            "privacy": effect_text(config, changes),
        }


def _is_said(config: RunConfig, change: str) -> bool:
    """Tell whether a change changes nothing."""
    key, value = parse_override(change)
    section, _, leaf = key.partition(".")
    return bool(getattr(getattr(config, section), leaf) == value)


def _toml(value: str | float | bool) -> str:
    """Write a value as ``--set`` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
