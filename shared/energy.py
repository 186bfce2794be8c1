"""How much energy a piece of work took, always beside the method that says so.

A number of joules is worth what its method is worth, so there is none without its name:

- ``counter``: the processor's own counters (RAPL, ``/sys/class/powercap``), of all packages and
  their memory. Linux lets root alone read them.
- ``battery``: what a battery that discharges says it gives, times the time; of the whole device,
  display included.
- ``estimate``: processor seconds of this process times watts that the user named. Never assumed.
- ``none``: nothing is known, and no number is given.

A counter and a battery see the whole machine: other programs that run meanwhile are in the number.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import InvalidValue

Method = Literal["counter", "battery", "estimate", "none"]
_MICRO = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of one piece of work.

    Attributes:
        joules: None if the method is ``none``.
        method: how it was found.
        seconds: wall time that it was taken over.
    """

    joules: float | None
    method: Method
    seconds: float

    @property
    def watts(self) -> float | None:
        """Return the mean power; None where the energy is not known."""
        if self.joules is None or not self.seconds > 0:
            return None
        return self.joules / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class EnergyMeter:
    """Measures the energy between :meth:`start` and :meth:`stop`; see the module.

    The first method that works at the start is used to the end; if it fails on the way, the result
    is ``none``. A counter that runs over is followed once between two readings: call :meth:`sample`
    at least every quarter of an hour in work that takes long, and more often on a battery, whose
    power is taken to change evenly between readings.

    Args:
        sys: the device tree.
        watts: power of one busy core, for an estimate where nothing measures; None for none.

    Raises:
        InvalidValue: for watts that are not above 0.
    """

    def __init__(self, sys: Path = Path("/sys"), *, watts: float | None = None) -> None:
        if watts is not None and not (math.isfinite(watts) and watts > 0):
            msg = f"watts={watts}, expected a finite number above 0."
            raise InvalidValue(msg)
        self._powercap = sys / "class" / "powercap"
        self._supplies = sys / "class" / "power_supply"
        self._watts = watts
        self._method: Method = "none"
        self._joules: float | None = None
        self._began = self._last = self._processor = self._power = 0.0
        self._counts: dict[Path, int] = {}

    def start(self) -> Method:
        """Begin, and return the method that will be used."""
        self._joules = 0.0
        self._counts = self._read_counters()
        power = None if self._counts else self._battery_watts()
        self._power = power or 0.0
        if self._counts:
            self._method = "counter"
        elif power is not None:
            self._method = "battery"
        else:
            self._method = "none" if self._watts is None else "estimate"
        self._processor = time.process_time()
        self._began = self._last = time.monotonic()
        return self._method

    def sample(self) -> None:
        """Take a reading on the way."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        if self._joules is None:
            return
        if self._method == "counter":
            self._count()
        elif self._method == "battery":
            power = self._battery_watts()
            if power is None:
                self._joules = None
                return
            self._joules += elapsed * (self._power + power) / 2
            self._power = power

    def stop(self) -> Energy:
        """Return the energy since :meth:`start`."""
        self.sample()
        seconds = self._last - self._began
        if self._method == "estimate" and self._watts is not None:
            used = time.process_time() - self._processor
            return Energy(joules=used * self._watts, method="estimate", seconds=seconds)
        if self._method == "none" or self._joules is None:
            return Energy(joules=None, method="none", seconds=seconds)
        return Energy(joules=self._joules, method=self._method, seconds=seconds)

    def _count(self) -> None:
        """Add what the counters went up by."""
        counts = self._read_counters()
        if counts.keys() != self._counts.keys():
            self._joules = None
            return
        total = 0
        for zone, count in counts.items():
            rise = count - self._counts[zone]
            if rise < 0:
                span = _integer(zone / "max_energy_range_uj")
                if span is None or not span + rise >= 0:
                    self._joules = None
                    return
                rise += span
            total += rise
        self._counts = counts
        self._joules = (self._joules or 0.0) + total * _MICRO

    def _read_counters(self) -> dict[Path, int]:
        """Return the counters of all packages and their memory; nothing if one cannot be read.

        ``psys`` and ``core`` are left out, whose energy is counted already, and so is the second
        way to the same counter (``intel-rapl-mmio``).
        """
        found: dict[Path, int] = {}
        try:
            zones = sorted(self._powercap.glob("intel-rapl:*"))
        except OSError:
            return {}
        for zone in zones:
            name = _text(zone / "name") or ""
            if not (name.startswith("package") or name == "dram"):
                continue
            count = _integer(zone / "energy_uj")
            if count is None:
                return {}
            found[zone] = count
        return found

    def _battery_watts(self) -> float | None:
        """Return the power that batteries give; None if none discharges, or one does not say."""
        total, found = 0.0, False
        try:
            supplies = sorted(self._supplies.iterdir())
        except OSError:
            return None
        for supply in supplies:
            told = (_text(supply / "type"), _text(supply / "scope"), _text(supply / "status"))
            if told[0] != "Battery" or told[1] == "Device" or told[2] != "Discharging":
                continue
            watts = _supply_watts(supply)
            if watts is None:
                return None
            total, found = total + watts, True
        return total if found else None


def _supply_watts(supply: Path) -> float | None:
    """Return a battery's power; the kernel counts in millionths, some drivers with a sign."""
    power = _integer(supply / "power_now")
    if power is not None:
        return abs(power) * _MICRO
    current, voltage = _integer(supply / "current_now"), _integer(supply / "voltage_now")
    if current is None or voltage is None:
        return None
    return abs(current) * _MICRO * voltage * _MICRO


def _text(path: Path) -> str | None:
    """Return a file of the kernel's, or None where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    """Return the integer in a file of the kernel's; None for anything else."""
    word = _text(path) or ""
    return int(word) if word.removeprefix("-").isdecimal() else None
