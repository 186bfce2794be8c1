"""A simulated clock: when a device is there, and when its answer arrives.

A discrete-event model of time alone; what clients compute is real. Everything here follows from the
scenario and its seed, by public streams: no data of any client, and no update, moves the clock.
Times are seconds since the start of the run.

A device works (it fetches the adapter, takes its steps, sends its answer) only while it is there.
It is there for the first ``available_share`` of each period, shifted by a phase of its own.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass

from shared.configclock import ClockSection
from shared.errors import InvalidValue
from shared.seeding import data_rng
from shared.validate import positive_integer

# Seconds by which a window may be missed because of rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What the clock knows of a client's device.

    Attributes:
        kind: which class of devices, from 0.
        phase: in ``[0, period)``; the device is there while ``(time + phase) % period`` is below
            ``available_share * period``.
    """

    kind: int
    phase: float


class SimulatedClock:
    """Says when answers arrive.

    Guarantee:
        Two clocks of the same settings and seed say the same, in whatever order they are asked.

    Args:
        settings: the scenario's ``clock`` section, with at least one class of devices.
        seed: the run's seed.
        local_steps: optimizer steps of a participation, the same for every client.

    Raises:
        InvalidValue: if there is no class of devices, or the classes do not fit together.
    """

    def __init__(self, settings: ClockSection, *, seed: int, local_steps: int) -> None:
        positive_integer(local_steps=local_steps)
        values = (settings.shares, settings.step_seconds, settings.upload, settings.download)
        if not settings.shares or len({len(value) for value in values}) != 1:
            msg = f"Found {[len(value) for value in values]} values, expected one a class of each."
            raise InvalidValue(msg)
        self._settings = settings
        self._seed = seed
        self._steps = local_steps
        self._bounds = list(itertools.accumulate(settings.shares))
        self._known: dict[int, Device] = {}

    @property
    def deadline(self) -> float:
        """Seconds after which an answer is too late; infinite if there is no deadline."""
        said = self._settings.deadline_seconds
        return math.inf if said is None else said

    @property
    def available_share(self) -> float:
        """Share of the period in which a device is there."""
        return self._settings.available_share

    def device(self, client: int) -> Device:
        """Return the device of a client: its class with the class's share, its phase uniform."""
        known = self._known.get(client)
        if known is None:
            rng = data_rng(self._seed, "clock", "device", client)
            place = float(rng.random()) * self._bounds[-1]
            kind = min(bisect.bisect_right(self._bounds, place), len(self._bounds) - 1)
            phase = float(rng.random()) * self._settings.period_seconds
            known = self._known[client] = Device(kind=kind, phase=phase)
        return known

    def there_from(self, client: int, at: float) -> float:
        """Return the first time, not before ``at``, at which a client's device is there."""
        period, share = self._settings.period_seconds, self._settings.available_share
        if share >= 1:
            return at
        place = self._place(client, at)
        return at if place < share * period else at + (period - place)

    def is_there(self, client: int, at: float) -> bool:
        """Tell whether a client's device is there."""
        return self.there_from(client, at) == at

    def work_until(self, client: int, at: float, seconds: float) -> float:
        """Return when a device has done some seconds of work that it begins at a time.

        Args:
            client: whose device.
            at: when it is asked; it waits until it is there.
            seconds: of work, only while it is there.
        """
        period, share = self._settings.period_seconds, self._settings.available_share
        begun = self.there_from(client, at)
        if share >= 1:
            return begun + seconds
        window = share * period
        left = window - self._place(client, begun)
        if seconds <= left:
            return begun + seconds
        # A whole window a period from the next one on; the last may be full.
        rest = seconds - left
        full = math.ceil(rest / window) - 1
        return begun + left + (period - window) + full * period + (rest - full * window)

    def arrival(
        self, client: int, server_round: int, *, at: float, down: int, up: int
    ) -> float | None:
        """Return when the answer of a participation arrives; None if it never does.

        A client takes part once in a round at most, so client and round name the participation.

        Args:
            client: who is asked.
            server_round: in which round.
            at: when it is asked.
            down: bytes that it is sent.
            up: bytes that it sends.
        """
        settings = self._settings
        rng = data_rng(self._seed, "clock", "answer", client, server_round)
        if float(rng.random()) < settings.dropout:
            return None
        slowness = math.exp(settings.jitter * float(rng.standard_normal()))
        kind = self.device(client).kind
        compute = self._steps * settings.step_seconds[kind] * slowness
        moved = down / settings.download[kind] + up / settings.upload[kind]
        return self.work_until(client, at, compute + moved)

    def _place(self, client: int, at: float) -> float:
        """Return how far into its period a device is."""
        period = self._settings.period_seconds
        place = (at + self.device(client).phase) % period
        return 0.0 if period - place < _ROUNDING else place
