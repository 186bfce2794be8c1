"""Why a device's settings are what they are: which bound another value would break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shared.devicebounds import Bounds
from shared.devicecost import Setup
from shared.devicesettings import Choice, Common, DevicePlan

_MIB = 1 << 20


class Reasons:
    """Says for every setting what it was, what it is, and why.

    Args:
        bounds: of the device.
        common: what all devices of a fleet share; None for a device alone.
    """

    def __init__(self, bounds: Bounds, common: Common | None) -> None:
        self._bounds = bounds
        self._common = common

    def plan(self, setup: Setup, r: int) -> DevicePlan:
        """Return a plan with a reason for every setting."""
        said = self._bounds.said
        rows: list[tuple[str, str | int | bool, str | int | bool, Callable[[], str], bool]] = [
            (
                "lora.r",
                self._bounds.spec.r,
                r,
                lambda: self._without(setup, self._bounds.spec.r),
                False,
            ),
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
            profile=self._bounds.profile,
            limits=self._bounds.limits,
            r=r,
            setup=setup,
            cost=self._bounds.cost(setup, r),
            choices=choices,
        )

    def _why_stored(self, setup: Setup, r: int) -> str:
        """Say why a base is stored otherwise than said."""
        if self._bounds.said.quantization not in self._bounds.profile.quantizations:
            return f"{self._bounds.profile.name} cannot hold {self._bounds.said.quantization}"
        return self._without(replace(setup, quantization=self._bounds.said.quantization), r)

    def _without(self, setup: Setup, r: int) -> str:
        """Say what one setting as the scenario has it, the others as chosen, would break."""
        cost = self._bounds.cost(setup, r)
        if not cost.memory.total <= self._bounds.profile.memory_bytes:
            need, have = cost.memory.total / _MIB, self._bounds.profile.memory_mib
            return f"memory: else {need:.0f} MiB of {have:.0f}"
        broken = self._bounds.broken(setup, r)
        if broken:
            return f"time: else {cost.seconds:.3g} s; the limit is {broken}"
        if self._common is not None:
            return "so that all devices of the run can"
        return "quicker, in memory that there is"
