"""The section ``[devices]``: of which kinds of hardware a fleet is, by public shares."""

from __future__ import annotations

from pydantic import Field

from shared.configtypes import PositiveInt, PositiveReal, Section


class DevicesSection(Section):
    """What hardware the clients run on, for `fedslm plan --mix`; training reads ranks alone."""

    mix: dict[str, PositiveReal] | tuple[str, ...] = Field(
        default={},
        description="share of the clients by profile, {pi5 = 0.5, phone-mid = 0.5}; or names with "
        "equal shares",
    )
    ranks: dict[str, PositiveInt] = Field(
        default={},
        description="rank that a profile of the mix trains, {pi5 = 2}; default lora.r, the largest",
    )

    @property
    def shares(self) -> dict[str, float]:
        """The share of each profile."""
        if isinstance(self.mix, dict):
            return dict(self.mix)
        return {name: 1.0 / len(self.mix) for name in self.mix}

    def ranks_within(self, r: int) -> dict[str, int]:
        """Return the rank of each profile of the mix; ``r`` where none is said."""
        return {name: self.ranks.get(name, r) for name in self.shares}
