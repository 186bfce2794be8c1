"""What one device bears of a scenario: memory, a round's time, a day's time and battery."""

from __future__ import annotations

from shared.baseshape import BaseShape, with_rank
from shared.config import RunConfig
from shared.devicecost import RoundCost, Setup, round_cost
from shared.devices import DeviceProfile
from shared.devicesettings import Limits, setup_of
from shared.lora import AdapterSpec

_DAY = 86_400.0


class Bounds:
    """Costs of a scenario's round on one device, and which bound a round breaks.

    Args:
        config: the scenario.
        shape: of its base.
        spec: of its adapter.
        profile: of the device.
        limits: what a round may take.

    Attributes:
        shape: of the base.
        spec: of the adapter, at the scenario's rank.
        said: how the scenario as it is would train.
    """

    def __init__(
        self,
        config: RunConfig,
        shape: BaseShape,
        spec: AdapterSpec,
        *,
        profile: DeviceProfile,
        limits: Limits,
    ) -> None:
        self.shape = shape
        self.spec = spec
        self.profile = profile
        self.limits = limits
        self.said = setup_of(config)
        self._specs: dict[int, AdapterSpec] = {}

    def cost(self, setup: Setup, r: int) -> RoundCost:
        """Return what a round costs."""
        if r not in self._specs:
            self._specs[r] = with_rank(self.spec, r)
        return round_cost(self.shape, self._specs[r], setup, self.profile)

    def holds(self, setup: Setup, r: int) -> bool:
        """Tell whether the memory of the device is enough."""
        return self.cost(setup, r).memory.total <= self.profile.memory_bytes

    def broken(self, setup: Setup, r: int) -> str:
        """Return which limit a round breaks beside memory; empty for none."""
        cost, limits = self.cost(setup, r), self.limits
        if not cost.seconds <= limits.seconds:
            return f"{limits.seconds:g} s a round ({limits.seconds_from})"
        rounds = limits.rounds_of_device
        if rounds is None:
            return ""
        if not rounds * cost.seconds <= _DAY:
            return f"{rounds:g} rounds a day take more than a day"
        daily = self.profile.daily_joules
        if daily is not None and not rounds * cost.joules <= daily:
            return f"{daily:.3g} J of battery a day, {rounds:g} rounds"
        return ""
