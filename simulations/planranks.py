"""What ``fedslm plan`` says about ranks: each device's own, or one for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shared.adaptermethod import METHODS
from shared.baseshape import with_rank
from shared.config import RunConfig
from shared.devices import PROFILES
from shared.devicesettings import DevicePlan
from shared.lora import AdapterSpec
from shared.rankrules import may_mix_ranks

RANK = "lora.r"


def scale_line(spec: AdapterSpec, r: int) -> str:
    """Return the alpha that keeps the adapter's scale at another rank, as ``--set`` takes it."""
    return f"lora.alpha={with_rank(spec, r).lora_alpha}"


def ranks_line(ranks: Mapping[str, int]) -> str:
    """Return ranks by profile as ``--set`` takes them."""
    return f"devices.ranks={{{', '.join(f'{name} = {r}' for name, r in ranks.items())}}}"


def own_rank(config: RunConfig, plan: DevicePlan) -> dict[str, Any]:
    """Return the rank of one device, and how it alone gets it.

    ``set`` is None where the rank is the scenario's, or may not be the device's own: a profile that
    is not built in has no place in ``devices.mix``. IA3 and prompts have no rank to thin.
    """
    if config.lora.variant in METHODS:
        return {"rank": config.lora.r, "of": config.lora.r, "set": None}
    name, r = plan.profile.name, plan.r
    own = may_mix_ranks(config) and name in PROFILES and r < config.lora.r
    return {"rank": r, "of": config.lora.r, "set": ranks_line({name: r}) if own else None}


def mixed_lines(config: RunConfig, spec: AdapterSpec, ranks: Mapping[str, int]) -> list[str]:
    """Return the settings with which every profile of a mix trains its own rank.

    The largest of them is ``lora.r``: columns that nobody trains would be sent for nothing.
    """
    if not may_mix_ranks(config):
        return []
    top = max(ranks.values())
    lines = [f"{RANK}={top}", scale_line(spec, top)] if top < spec.r else []
    thinner = {name: r for name, r in ranks.items() if r < top}
    said = config.devices.ranks_within(config.lora.r)
    if thinner or (config.devices.ranks and said != dict(ranks)):
        lines.append(ranks_line(thinner))
    return lines


def quoted(lines: Iterable[str]) -> str:
    """Return settings as a shell takes them."""
    return " ".join(f"--set '{x}'" if set(x) & set(" {[") else f"--set {x}" for x in lines)
