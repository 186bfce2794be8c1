"""When a device may work: the ``[conditions]`` of its policy, compared with what is the case now.

Conditions cost nothing and promise nothing about privacy; they keep a device usable. A missing
section asks for nothing. A condition that is asked for and cannot be judged is not met.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from datetime import time as clock_time
from pathlib import Path
from typing import NamedTuple

from client.machine import Machine, Usage
from client.policyfile import ConditionsSection, read_policy_file
from shared.errors import FedSLMError

BUSY_SHARE = 0.5
"""Share of the processor that other programs must take for the device to count as busy."""

CALM_SECONDS = 60.0
"""How long a busy device must be calm before work starts again."""

_MINUTE = 60.0
_LEAST_INTERVAL = 2.0
_MIB = 1024**2


class Condition(NamedTuple):
    """One condition of the owner's.

    Attributes:
        name: its key in the policy.
        met: whether it holds now; what is not known does not hold.
        found: what is the case, in plain words.
        wanted: what the policy asks for.
    """

    name: str
    met: bool
    found: str
    wanted: str


class Conditions:
    """The conditions of a policy file, judged again at every call; cheap enough for every second.

    The file is read again when it changes. One that cannot be used holds everything back.

    Args:
        policy: the device's policy file.
        machine: where the operating system says what is going on.
        now: the local time of day; an aware or a naive ``datetime``, its wall clock counts.
        seconds: a clock that never goes back.
    """

    def __init__(
        self,
        policy: Path,
        *,
        machine: Machine | None = None,
        now: Callable[[], datetime] | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._machine = Machine() if machine is None else machine
        self._now = _local_time if now is None else now
        self._others = _Others(self._machine, seconds)
        self._section: ConditionsSection | None = None
        self._problem = ""
        self._stamp: tuple[int, int, int] | None = None

    def __call__(self) -> tuple[str, ...]:
        """Return why the device may not work now, in plain words; nothing when it may."""
        return tuple(f"{c.name}: {c.found}; wanted: {c.wanted}" for c in self.report() if not c.met)

    def report(self) -> tuple[Condition, ...]:
        """Return every condition of the policy with what was found; none where it asks nothing."""
        self._read()
        if self._problem:
            return (Condition("policy", False, self._problem, "a policy file that can be used"),)
        return () if self._section is None else tuple(self._judge(self._section))

    def _judge(self, asked: ConditionsSection) -> Iterator[Condition]:
        """Yield each condition that is asked for."""
        if asked.hours is not None:
            yield _hours(asked.hours, self._now())
        if asked.mains_power:
            yield _mains(self._machine.mains_power())
        if asked.networks is not None:
            yield _networks(asked.networks, self._machine.networks())
        if asked.min_free_memory_mb is not None:
            yield _memory(asked.min_free_memory_mb, self._machine.free_memory())
        if asked.min_battery_percent is not None:
            yield _battery(asked.min_battery_percent, self._machine.battery())
        if asked.max_temperature_celsius is not None:
            yield _temperature(asked.max_temperature_celsius, self._machine.temperature())
        if asked.max_load is not None or asked.pause_when_busy:
            self._others.look()
        if asked.max_load is not None:
            yield _load(asked.max_load, self._others.load)
        if asked.pause_when_busy:
            yield _busy(self._others.share, calm=self._others.calm)

    def _read(self) -> None:
        """Read the policy if it changed since it was read last."""
        try:
            facts = self._policy.stat()
            stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        except OSError:
            stamp = None
        if stamp is not None and stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._section, self._problem = read_policy_file(self._policy).conditions, ""
        except FedSLMError as error:
            self._section, self._problem = None, f"not usable [{error.code}]"


class _Others:
    """How much of the processor programs other than ours use, over a minute and just now.

    The kernel's load average counts this program too, so its own part, averaged over the same
    minute in the same way, is taken off.

    Attributes:
        load: of others, for each core, over the last minute; ``None`` when not known.
        share: of the processor that others took since the look before; ``None`` when not known.
        calm: whether others were not busy for :data:`CALM_SECONDS`.
    """

    def __init__(self, machine: Machine, seconds: Callable[[], float]) -> None:
        self._machine = machine
        self._seconds = seconds
        self._last: Usage | None = None
        self._own_load = 0.0
        self._busy_at = -math.inf
        self.load: float | None = None
        self.share: float | None = None
        self.calm = True

    def look(self) -> None:
        """Look again, unless the last look was a moment ago."""
        at = self._seconds()
        last = self._last
        if last is not None and at - last.at < _LEAST_INTERVAL:
            return
        usage = self._machine.usage()
        if usage is not None:
            # The caller's clock, so that tests can turn it.
            usage = Usage(at=at, busy=usage.busy, total=usage.total, own=usage.own)
            self._compare(last, usage)
        self._last = usage
        whole = self._machine.load()
        known = whole is not None and usage is not None
        self.load = max(0.0, (whole or 0.0) - self._own_load) / _cores() if known else None

    def _compare(self, last: Usage | None, usage: Usage) -> None:
        """Bring the averages up to date with what happened between two looks."""
        if last is None or not usage.total > last.total:
            self.share = None
            return
        own = max(0.0, usage.own - last.own)
        passed = usage.at - last.at
        keep = math.exp(-passed / _MINUTE)
        self._own_load = keep * self._own_load + (1.0 - keep) * own / passed
        others = max(0.0, usage.busy - last.busy - own)
        self.share = min(1.0, others / (usage.total - last.total))
        if self.share > BUSY_SHARE:
            self._busy_at = usage.at
        self.calm = usage.at - self._busy_at >= CALM_SECONDS


def _hours(windows: tuple[str, ...], now: datetime) -> Condition:
    """Compare the wall clock with the windows; one that ends before it starts spans midnight."""
    clock = now.time()
    met = any(_inside(window, clock) for window in windows)
    return Condition("hours", met, f"it is {clock:%H:%M}", ", ".join(windows))


def _inside(window: str, clock: clock_time) -> bool:
    """Tell whether a time of day is in a window, its start included and its end not."""
    start, end = (_minutes(text) for text in window.split("-"))
    minute = clock.hour * 60 + clock.minute
    return start <= minute < end if start < end else minute >= start or minute < end


def _minutes(text: str) -> int:
    """Return the minutes since midnight of ``HH:MM``."""
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)


def _mains(found: bool | None) -> Condition:
    """Judge the power supply."""
    words = {True: "on mains power", False: "on battery", None: "this system does not say"}
    return Condition("mains_power", found is True, words[found], "mains power")


def _networks(wanted: tuple[str, ...], found: frozenset[str] | None) -> Condition:
    """Judge the network; every route that is in use must be of a kind that is wanted."""
    met = found is not None and found <= frozenset(wanted)
    words = "not known" if found is None else " and ".join(sorted(found))
    return Condition("networks", met, words, " or ".join(wanted))


def _memory(wanted: int, found: int | None) -> Condition:
    """Judge the memory that other programs leave."""
    met = found is not None and found >= wanted * _MIB
    words = "not known" if found is None else f"{found // _MIB} MiB free"
    return Condition("min_free_memory_mb", met, words, f"at least {wanted} MiB")


def _battery(wanted: int, found: float | None) -> Condition:
    """Judge the charge of the battery."""
    met = found is not None and found >= wanted
    words = "not known" if found is None else f"{found:.0f} %"
    return Condition("min_battery_percent", met, words, f"at least {wanted} %")


def _temperature(wanted: float, found: float | None) -> Condition:
    """Judge how hot the device is."""
    met = found is not None and found <= wanted
    words = "not known" if found is None else f"{found:.0f} degrees"
    return Condition("max_temperature_celsius", met, words, f"at most {wanted:g} degrees")


def _load(wanted: float, found: float | None) -> Condition:
    """Judge the load average of others."""
    met = found is not None and found <= wanted
    words = "not known" if found is None else f"{found:.2f} for each core by other programs"
    return Condition("max_load", met, words, f"at most {wanted:g}")


def _busy(share: float | None, *, calm: bool) -> Condition:
    """Judge what others take of the processor right now."""
    met = share is not None and calm
    words = "not known yet" if share is None else f"other programs use {share:.0%} of the processor"
    if share is not None and share <= BUSY_SHARE and not calm:
        words += f", and used more than {BUSY_SHARE:.0%} within {CALM_SECONDS:.0f} s"
    return Condition("pause_when_busy", met, words, f"at most {BUSY_SHARE:.0%}, for a minute")


def _cores() -> int:
    """Return the number of cores of the machine, which the load average is about."""
    return os.cpu_count() or 1


def _local_time() -> datetime:
    """Return the wall clock of this device."""
    # The owner thinks in the wall clock: a switch to summer time moves the window along.
    return datetime.now().astimezone()
