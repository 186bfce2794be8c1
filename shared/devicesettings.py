"""What a device trains with and what a round may take, as the planner speaks of them."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config import RunConfig
from shared.devicecost import RoundCost, Setup
from shared.devices import DeviceProfile
from shared.errors import ConflictingSettings


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
        r: rank; None where each device may have its own (``devices.ranks``).
        max_length: tokens of an example.
        local_steps: of a round.
        quantization: how the base is stored.
    """

    r: int | None
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
        compute_dtype=config.model.compute_dtype,
        cache=performance.cache_dequantized,
        private=config.steps_are_private,
        kinds=max((config.policy_facts.trained(n) for n in (1, 2)), key=_dearness),
        kinds_down=config.trained_kinds,
        stage=stages.get(mode, "clipped"),
        adamw=clients.optimizer == "adamw",
        secure=mode == "client-distributed",
        link=config.link,
    )


def _dearness(kinds: str) -> tuple[int, bool]:
    """Order the factors of a round by what training them takes: an A needs its layer's input."""
    return len(kinds), "A" in kinds
