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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from shared.baseshape import BaseShape, stored_bytes, with_rank
from shared.config import RunConfig
from shared.devicecost import Clipper, RoundCost, Setup, round_cost
from shared.devices import DeviceProfile
from shared.errors import ConflictingSettings
from shared.lora import AdapterSpec

SHORTEST = 16
"""Tokens of an example below which nothing is proposed."""

_MIB = 1 << 20
_DAY = 86_400.0
_BETTER = ("none", "int8", "int4", "nf4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a round may take.

    Attributes:
        seconds: of a round.
        seconds_from: where that limit is from.
        rounds_per_day: how often the server asks the fleet; None leaves battery and day out.
        participation: expected share of the rounds in which a device takes part; public.
    """

    seconds: float
    seconds_from: str
    rounds_per_day: float | None = None
    participation: float = 1.0

    @property
    def rounds_of_device(self) -> float | None:
        """Rounds a day in which a device is expected to take part."""
        return None if self.rounds_per_day is None else self.rounds_per_day * self.participation


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all devices of a run share, because the scenario's digest covers it.

    Attributes:
        r: rank.
        max_length: tokens of an example.
        local_steps: of a round.
        quantization: how the base is stored.
    """

    r: int
    max_length: int
    local_steps: int
    quantization: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One setting and why it is what it is.

    Attributes:
        key: ``section.key``.
        said: what the scenario says.
        chosen: what the planner says.
        why: the bound that was hit, or that the scenario's value fits.
        neutral: whether the privacy plan does not read it.
    """

    key: str
    said: str | int | float | bool
    chosen: str | int | float | bool
    why: str
    neutral: bool

    @property
    def moved(self) -> bool:
        """Whether it differs from the scenario."""
        return self.said != self.chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """Settings with which a device takes part, and what a round then costs.

    Attributes:
        profile: of the device.
        limits: what a round may take.
        r: rank.
        setup: how the device trains.
        cost: of a round.
        choices: every setting with its reason.
    """

    profile: DeviceProfile
    limits: Limits
    r: int
    setup: Setup
    cost: RoundCost
    choices: tuple[Choice, ...]

    def moved(self, *, neutral: bool) -> tuple[Choice, ...]:
        """Return the settings that differ from the scenario's, of one group."""
        return tuple(c for c in self.choices if c.moved and c.neutral == neutral)


def setup_of(config: RunConfig) -> Setup:
    """Return how a scenario as it is would train.

    Raises:
        ConflictingSettings: if the number of steps would depend on a client's records.
    """
    clients, performance = config.clients, config.performance
    if clients.local_steps is None:
        msg = "clients.local_epochs makes the steps of a round depend on a client's records."
        raise ConflictingSettings(
            msg, hint="The planner reads no data: give the scenario clients.local_steps."
        )
    mode = config.privacy.mode
    stages = {"none": "plain", "example": "noised"}
    return Setup(
        max_length=config.data.max_length,
        batch_size=clients.batch_size,
        physical_batch=performance.physical_batch,
        local_steps=clients.local_steps,
        clipper=performance.clipper,
        quantization=config.model.quantization,
        cache=performance.cache_dequantized,
        private=config.steps_are_private,
        kinds=max((config.policy_facts.trained(n) for n in (1, 2)), key=_dearness),
        kinds_down=config.trained_kinds,
        stage=stages.get(mode, "clipped"),
        adamw=clients.optimizer == "adamw",
        secure=mode == "client-distributed",
        link=config.link,
    )


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
        self._shape = shape
        self._spec = spec
        self._profile = profile
        self._limits = limits
        self._said = setup_of(config)
        self._common = common
        self._most = common or Common(
            r=spec.r,
            max_length=self._said.max_length,
            local_steps=self._said.local_steps,
            quantization="",
        )
        self._specs: dict[int, AdapterSpec] = {}

    def plan(self) -> DevicePlan:
        """Return the settings that change least of the scenario and fit.

        Raises:
            ConflictingSettings: if nothing fits; says the smallest need.
        """
        for r, length in self._sizes():
            # A smaller step is tried only where not even a single larger one fits.
            setup = self._in_memory(replace(self._said, max_length=length, local_steps=1), r)
            if setup is None or self._broken(setup, r):
                continue
            most = self._most_steps(setup, r, self._most.local_steps)
            return self._told(replace(setup, local_steps=most), r)
        raise self._nothing_fits()

    def cost(self, setup: Setup, r: int) -> RoundCost:
        """Return what a round costs."""
        if r not in self._specs:
            self._specs[r] = with_rank(self._spec, r)
        return round_cost(self._shape, self._specs[r], setup, self._profile)

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """Yield rank and length, what the scenario says first, then shorter, then thinner."""
        longest = self._most.max_length
        ranks = list(_halvings(self._most.r, 1))
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
                if self.cost(candidate, r).memory.total <= self._profile.memory_bytes
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
        size = stored_bytes(self._shape, said)
        smaller = [
            q for q in _BETTER if q in allowed and q != said and stored_bytes(self._shape, q) < size
        ]
        smaller.sort(key=lambda q: -stored_bytes(self._shape, q))
        if said in allowed:
            return [said, *smaller]
        # What is said cannot be held here at all: then the nearest from above comes before none.
        larger = [q for q in _BETTER if q in allowed and q not in smaller]
        larger.sort(key=lambda q: stored_bytes(self._shape, q))
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

    def _broken(self, setup: Setup, r: int) -> str:
        """Return which limit a round breaks beside memory; empty for none."""
        cost, limits = self.cost(setup, r), self._limits
        if not cost.seconds <= limits.seconds:
            return f"{limits.seconds:g} s a round ({limits.seconds_from})"
        rounds = limits.rounds_of_device
        if rounds is None:
            return ""
        if not rounds * cost.seconds <= _DAY:
            return f"{rounds:g} rounds a day take more than a day"
        daily = self._profile.daily_joules
        if daily is not None and not rounds * cost.joules <= daily:
            return f"{daily:.3g} J of battery a day, {rounds:g} rounds"
        return ""

    def _most_steps(self, setup: Setup, r: int, steps: int) -> int:
        """Return the most local steps, up to what is said, that break no limit; at least 1."""
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._broken(replace(setup, local_steps=middle), r):
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
        fewest = min(profile.quantizations, key=lambda q: stored_bytes(self._shape, q))
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
            f"{cost.joules:.3g} J, the limit is {self._broken(quickest, 1)}."
        )
        return ConflictingSettings(
            msg, hint="Raise the limit, ask less often, or take a smaller base or batch."
        )

    def _told(self, setup: Setup, r: int) -> DevicePlan:
        """Return a plan with a reason for every setting."""
        said = self._said
        rows: list[tuple[str, str | int | bool, str | int | bool, Callable[[], str], bool]] = [
            ("lora.r", self._spec.r, r, lambda: self._without(setup, self._spec.r), False),
            (
                "data.max_length",
                said.max_length,
                setup.max_length,
                lambda: self._without(replace(setup, max_length=said.max_length), r),
                False,
            ),
            (
                "clients.local_steps",
                said.local_steps,
                setup.local_steps,
                lambda: self._without(replace(setup, local_steps=said.local_steps), r),
                False,
            ),
            (
                "model.quantization",
                said.quantization,
                setup.quantization,
                lambda: self._why_stored(setup, r),
                True,
            ),
            (
                "performance.cache_dequantized",
                said.cache,
                setup.cache,
                lambda: self._without(replace(setup, cache=said.cache), r),
                True,
            ),
            (
                "performance.clipper",
                said.clipper,
                setup.clipper,
                lambda: self._without(replace(setup, clipper=said.clipper), r),
                True,
            ),
            (
                "performance.physical_batch",
                said.physical_batch,
                setup.physical_batch,
                lambda: self._without(replace(setup, physical_batch=2 * setup.physical_batch), r),
                True,
            ),
        ]
        choices = tuple(
            Choice(
                key=key,
                said=before,
                chosen=after,
                why="as the scenario says" if before == after else why(),
                neutral=neutral,
            )
            for key, before, after, why, neutral in rows
        )
        return DevicePlan(
            profile=self._profile,
            limits=self._limits,
            r=r,
            setup=setup,
            cost=self.cost(setup, r),
            choices=choices,
        )

    def _why_stored(self, setup: Setup, r: int) -> str:
        """Say why a base is stored otherwise than said."""
        if self._said.quantization not in self._profile.quantizations:
            return f"{self._profile.name} cannot hold {self._said.quantization}"
        return self._without(replace(setup, quantization=self._said.quantization), r)

    def _without(self, setup: Setup, r: int) -> str:
        """Say what one setting as the scenario has it, the others as chosen, would break."""
        cost = self.cost(setup, r)
        if not cost.memory.total <= self._profile.memory_bytes:
            need, have = cost.memory.total / _MIB, self._profile.memory_mib
            return f"memory: else {need:.0f} MiB of {have:.0f}"
        broken = self._broken(setup, r)
        if broken:
            return f"time: else {cost.seconds:.3g} s; the limit is {broken}"
        if self._common is not None:
            return "so that all devices of the run can"
        return "quicker, in memory that there is"


def _dearness(kinds: str) -> tuple[int, bool]:
    """Order the factors of a round by what training them takes: an A needs its layer's input."""
    return len(kinds), "A" in kinds


def _halvings(value: int, least: int) -> Iterator[int]:
    """Yield a value and its halves, powers of two below it, down to the least one."""
    yield value
    power = 1 << max(0, (value - 1).bit_length() - 1)
    while power >= least and power < value:
        yield power
        power //= 2
