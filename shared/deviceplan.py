"""Which settings let a device take part: a small search over public numbers.

The planner reads the scenario, the shape of the base and the profile of a device. It reads no data
and asks no device, so its answer needs no privacy budget.

It moves two groups of settings, and says which is which:

- **its own**: ``model.quantization``, ``performance.cache_dequantized``, ``performance.clipper``
  and ``performance.physical_batch``. None of them is read by the privacy plan: epsilon, noise,
  sampling and clip stay what they are.
- **proposed**: ``clients.local_steps``, ``data.max_length`` and ``lora.r``. They change what is
  learned, and local steps change the privacy plan in mode ``example``; nothing is applied, and each
  comes with its effect on the plan (:mod:`shared.planeffect`). The batch and the sampling
  probability are never moved.

Where clients may have different ranks, a device thins its own, down to a quarter, before it asks
all devices for fewer steps or shorter examples: its rank is nobody else's, and no privacy plan
reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from shared.baseshape import BaseShape, stored_bytes
from shared.config import RunConfig
from shared.devicebounds import Bounds
from shared.devicecost import Clipper, RoundCost, Setup
from shared.devicereasons import Reasons
from shared.devices import DeviceProfile
from shared.devicesettings import Common, DevicePlan, Limits
from shared.errors import ConflictingSettings
from shared.lora import AdapterSpec
from shared.rankrules import may_mix_ranks

SHORTEST = 16
"""Tokens of an example below which nothing is proposed."""

_THINNEST = 4  # of the scenario's rank, where a device thins its own to keep all else
_MIB = 1 << 20
_BETTER = ("none", "int8", "torchao-int8", "int4", "nf4")


class Planner:
    """Searches settings for one device.

    Args:
        config: the scenario.
        shape: of its base.
        spec: of its adapter.
        profile: of the device.
        limits: what a round may take.
        common: what all devices of a fleet share, in place of what the scenario says; reasons
            still compare with the scenario.
    """

    def __init__(
        self,
        config: RunConfig,
        shape: BaseShape,
        spec: AdapterSpec,
        *,
        profile: DeviceProfile,
        limits: Limits,
        common: Common | None = None,
    ) -> None:
        self._bounds = Bounds(config, shape, spec, profile=profile, limits=limits)
        self._said = self._bounds.said
        self._profile = profile
        self._common = common
        self._most = common or Common(
            r=None,
            max_length=self._said.max_length,
            local_steps=self._said.local_steps,
            quantization="",
        )
        self._most_rank = self._most.r or spec.r
        self._own_rank = may_mix_ranks(config) and self._most.r is None
        self._reasons = Reasons(self._bounds, common)

    def plan(self) -> DevicePlan:
        """Return the settings that change least of the scenario and fit.

        Raises:
            ConflictingSettings: if nothing fits; says the smallest need.
        """
        length, steps = self._most.max_length, self._most.local_steps
        thinnest = max(1, self._most_rank // _THINNEST)
        for r in _halvings(self._most_rank, thinnest) if self._own_rank else ():
            setup = self._in_memory(replace(self._said, max_length=length, local_steps=steps), r)
            if setup is not None and not self._bounds.broken(setup, r):
                return self._reasons.plan(setup, r)
        for r, shorter in self._sizes():
            # A smaller step is tried only where not even a single larger one fits.
            setup = self._in_memory(replace(self._said, max_length=shorter, local_steps=1), r)
            if setup is None or self._bounds.broken(setup, r):
                continue
            return self._reasons.plan(
                replace(setup, local_steps=self._most_steps(setup, r, steps)), r
            )
        raise self._nothing_fits()

    def cost(self, setup: Setup, r: int) -> RoundCost:
        """Return what a round costs."""
        return self._bounds.cost(setup, r)

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """Yield rank and length, what the scenario says first, then shorter, then thinner."""
        longest = self._most.max_length
        ranks = list(_halvings(self._most_rank, 1))
        lengths = list(_halvings(longest, min(SHORTEST, longest)))
        for r in ranks:
            for length in lengths:
                yield r, length

    def _in_memory(self, setup: Setup, r: int) -> Setup | None:
        """Return the quickest of a size's setups that the memory holds."""
        for quantization in self._quantizations():
            fitting = [
                candidate
                for candidate in self._own(replace(setup, quantization=quantization))
                if self._bounds.holds(candidate, r)
            ]
            if fitting:
                return min(fitting, key=lambda candidate: self._order(candidate, r))
        return None

    def _order(self, setup: Setup, r: int) -> tuple[float, int]:
        """Order setups by time, and those that take as long by how much they move."""
        said = self._said
        moved = (setup.clipper != said.clipper) + (setup.cache != said.cache)
        moved += setup.physical_batch != said.physical_batch
        return self.cost(setup, r).step_macs, moved

    def _quantizations(self) -> list[str]:
        """Return how the base may be stored: as said, then in ever fewer bytes."""
        if self._common is not None:
            return [self._common.quantization]
        said, allowed = self._said.quantization, self._profile.quantizations
        size = stored_bytes(self._bounds.shape, said)
        smaller = [
            q
            for q in _BETTER
            if q in allowed and q != said and stored_bytes(self._bounds.shape, q) < size
        ]
        smaller.sort(key=lambda q: -stored_bytes(self._bounds.shape, q))
        if said in allowed:
            return [said, *smaller]
        # What is said cannot be held here at all: then the nearest from above comes before none.
        larger = [q for q in _BETTER if q in allowed and q not in smaller]
        larger.sort(key=lambda q: stored_bytes(self._bounds.shape, q))
        return [*smaller, *larger]

    def _own(self, setup: Setup) -> Iterator[Setup]:
        """Yield every way to train that the privacy plan does not read."""
        caches = (setup.cache, not setup.cache) if setup.quantization != "none" else (setup.cache,)
        clippers: Sequence[Clipper] = (setup.clipper,)
        if setup.private and setup.clipper != "microbatch":
            clippers = (setup.clipper, "microbatch")
        for cache in caches:
            for clipper in clippers:
                for batch in _halvings(setup.physical_batch, 1):
                    yield replace(setup, cache=cache, clipper=clipper, physical_batch=batch)

    def _most_steps(self, setup: Setup, r: int, steps: int) -> int:
        """Return the most local steps, up to what is said, that break no limit; at least 1."""
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._bounds.broken(replace(setup, local_steps=middle), r):
                high = middle - 1
            else:
                low = middle
        return low

    def _nothing_fits(self) -> ConflictingSettings:
        """Return the error that says the smallest need."""
        said, profile = self._said, self._profile
        length = min(SHORTEST, said.max_length)
        small = replace(said, max_length=length, local_steps=1, physical_batch=1)
        if small.private:
            small = replace(small, clipper="microbatch")
        fewest = min(profile.quantizations, key=lambda q: stored_bytes(self._bounds.shape, q))
        least = replace(small, quantization=fewest, cache=False)
        need = self.cost(least, 1).memory.total
        size = f"rank 1, {length} tokens and 1 local step"
        if not need <= profile.memory_bytes:
            msg = (
                f"Nothing fits {profile.name}: at {size} on a base in {fewest} training needs "
                f"{need / _MIB:.0f} MiB, the device has {profile.memory_mib:.0f}."
            )
            return ConflictingSettings(msg, hint="Take a smaller base, or leave the device out.")
        quickest = self._in_memory(replace(small, physical_batch=said.physical_batch), 1) or least
        cost = self.cost(quickest, 1)
        msg = (
            f"Nothing fits {profile.name}: at {size} a round takes {cost.seconds:.3g} s and "
            f"{cost.joules:.3g} J, the limit is {self._bounds.broken(quickest, 1)}."
        )
        return ConflictingSettings(
            msg, hint="Raise the limit, ask less often, or take a smaller base or batch."
        )


def _halvings(value: int, least: int) -> Iterator[int]:
    """Yield a value and its halves, powers of two below it, down to the least one."""
    yield value
    power = 1 << max(0, (value - 1).bit_length() - 1)
    while power >= least and power < value:
        yield power
        power //= 2
