"""A fleet of several kinds of devices: who is what, and settings with which all can train.

The assignment is public: it follows from the mix, the population and the run's seed alone. A kind
of device may be told from a client's number, so a mix must not encode anything that a user would
want to hide; a profile is of hardware, never of a person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from shared.baseshape import BaseShape, stored_bytes
from shared.config import RunConfig
from shared.deviceplan import Planner
from shared.devices import PROFILES, DeviceProfile
from shared.devicesettings import Common, DevicePlan, Limits
from shared.deviceshares import assigned
from shared.errors import ConflictingSettings
from shared.lora import AdapterSpec
from shared.rankrules import may_mix_ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class MixPlan:
    """Settings for a fleet of mixed devices.

    Attributes:
        alone: what each profile could do by itself.
        together: the same with one quantisation, length and number of steps for all; and with one
            rank where the scenario's aggregation takes no other.
    """

    alone: Mapping[str, DevicePlan]
    together: Mapping[str, DevicePlan]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each profile."""
        return {name: plan.r for name, plan in self.together.items()}

    @property
    def slowest(self) -> DevicePlan:
        """The plan of the profile that a round waits for."""
        return max(self.together.values(), key=lambda plan: plan.cost.seconds)


def plan_mix(config: RunConfig, shape: BaseShape, spec: AdapterSpec, *, limits: Limits) -> MixPlan:
    """Plan every profile of a scenario's mix, alone and then with what all must share.

    Args:
        config: the scenario, with a mix.
        shape: of its base.
        spec: of its adapter.
        limits: what a round may take.

    Raises:
        ConflictingSettings: if there is no mix, a profile cannot take part, or no quantisation is
            held by all.
    """
    profiles = {name: PROFILES[name] for name in config.devices.shares}
    if not profiles:
        msg = "devices.mix is empty, expected the share of each profile."
        raise ConflictingSettings(msg, hint='For example: --set devices.mix=["pi5", "laptop"]')
    alone = {
        name: Planner(config, shape, spec, profile=profile, limits=limits).plan()
        for name, profile in profiles.items()
    }
    together, own_rank = alone, may_mix_ranks(config)
    while not _agreed(together, own_rank=own_rank):
        stored = _common_quantization(together, profiles, shape)
        common = _common(together, stored, own_rank=own_rank)
        together = {
            name: Planner(config, shape, spec, profile=profile, limits=limits, common=common).plan()
            for name, profile in profiles.items()
        }
    return MixPlan(alone=alone, together=together)


def _common(plans: Mapping[str, DevicePlan], quantization: str, *, own_rank: bool) -> Common:
    """Return the most that all of some plans can do."""
    return Common(
        r=None if own_rank else min(plan.r for plan in plans.values()),
        max_length=min(plan.setup.max_length for plan in plans.values()),
        local_steps=min(plan.setup.local_steps for plan in plans.values()),
        quantization=quantization,
    )


def _agreed(plans: Mapping[str, DevicePlan], *, own_rank: bool) -> bool:
    """Tell whether all plans have the same of what is shared."""
    shared = {
        (0 if own_rank else p.r, p.setup.max_length, p.setup.local_steps, p.setup.quantization)
        for p in plans.values()
    }
    return len(shared) == 1


def _common_quantization(
    plans: Mapping[str, DevicePlan], profiles: Mapping[str, DeviceProfile], shape: BaseShape
) -> str:
    """Return how all store the base: as the neediest does, or the nearest that all can hold."""
    possible = set.intersection(*(set(profile.quantizations) for profile in profiles.values()))
    if not possible:
        msg = f"No quantisation of the base is held by all of {', '.join(profiles)}."
        raise ConflictingSettings(msg, hint="Leave one of them out of devices.mix.")
    least = min(stored_bytes(shape, plan.setup.quantization) for plan in plans.values())
    fitting = [q for q in possible if stored_bytes(shape, q) <= least]
    if fitting:
        return max(sorted(fitting), key=lambda q: stored_bytes(shape, q))
    return min(sorted(possible), key=lambda q: stored_bytes(shape, q))


def counts_of(config: RunConfig) -> dict[str, int] | None:
    """Return how many clients have each profile; None where the population is not said."""
    population = config.clients.population
    if population is None:
        return None
    names = assigned(config.devices.shares, population=population, seed=config.run.seed)
    return dict(Counter(names))
