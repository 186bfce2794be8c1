"""A machine for tests: the files in which Linux would say what it is doing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from client.machine import Machine

PID = 4321
_HERTZ = os.sysconf("SC_CLK_TCK")


def machine(root: Path) -> Machine:
    """Return a machine whose files lie below a folder; nothing is known about it yet."""
    for name in ("proc/net", "proc/self", "sys/class/power_supply", "sys/class/net"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return Machine(proc=root / "proc", sys=root / "sys", pid=PID)


def write(path: Path, text: str) -> None:
    """Write a file of the kernel's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def supply(there: Machine, name: str, **values: str) -> None:
    """Add a power supply."""
    for key, value in values.items():
        write(there.sys / "class" / "power_supply" / name / key, value)


def interface(
    there: Machine, name: str, *, event: str = "", driver: str | None = "e1000e", kind: str = "1"
) -> Path:
    """Add a network interface; without a driver there is no device behind it."""
    folder = there.sys / "class" / "net" / name
    write(folder / "uevent", f"{event}\nINTERFACE={name}".strip())
    write(folder / "type", kind)
    if driver is not None:
        target = there.sys / "bus" / "drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (folder / "device").mkdir()
        (folder / "device" / "driver").symlink_to(target)
    return folder


def routes(there: Machine, metrics: Mapping[str, int]) -> None:
    """Write the IPv4 routes: one default route for each interface, and one to a neighbour."""
    lines = ["Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"]
    for name, metric in metrics.items():
        lines.append(f"{name} 00000000 0100A8C0 0003 0 0 {metric} 00000000 0 0 0")
        lines.append(f"{name} 0000A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0")
    write(there.proc / "net" / "route", "\n".join(lines))


def busy(there: Machine, *, busy: float, idle: float, own: float, load: float) -> None:
    """Write what was used since the start, in seconds of one core."""
    ticks = [round(seconds * _HERTZ) for seconds in (busy, 0, 0, idle, 0, 0, 0, 0)]
    write(there.proc / "stat", f"cpu  {' '.join(map(str, ticks))} 0 0\ncpu0 1 1 1 1")
    write(there.proc / "loadavg", f"{load:.2f} 0.10 0.05 1/100 77")
    process(there, PID, parent=1, seconds=own)


def process(
    there: Machine, pid: int, *, parent: int, seconds: float = 0.0, held_kib: int = 0
) -> None:
    """Add a process, under a name that a careless reader would take for fields."""
    ticks = round(seconds * _HERTZ)
    text = f"{pid} (a) b) S {parent} 1 1 0 -1 4194304 9 0 0 0 {ticks} 0 0 0 39 19 1 0 5 6 7"
    write(there.proc / str(pid) / "stat", text)
    write(there.proc / str(pid) / "status", f"Name:\ta\nRssAnon:\t{held_kib} kB")
