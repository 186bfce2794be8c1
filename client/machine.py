"""What the operating system says about this device right now: power, heat, network, load, memory.

Read from Linux's own files, so that the process that waits for work stays small. Whatever is not
there, or not in a form that is known, is ``None``: unknown, and never taken for good.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MIB = 1024**2
_UP = 1
_GATEWAY = "00000000"
_IPV6_NOWHERE = "00000000000000000000000000000000"
# A phone that shares its connection over USB looks like an Ethernet card, except for its driver.
_PHONE_DRIVERS = frozenset({"cdc_mbim", "huawei_cdc_ncm", "ipheth", "qmi_wwan", "rndis_host"})
_UNCLEAR_DRIVERS = frozenset({"cdc_eem", "cdc_ether", "cdc_ncm"})
_ETHERNET = "1"
_FULL = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was counted since the machine started, in seconds of one core.

    Attributes:
        at: the monotonic clock, seconds.
        busy: of all cores together, by every program.
        total: of all cores together, idle time included.
        own: by this process and its descendants, those that ended included.
    """

    at: float
    busy: float
    total: float
    own: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where Linux says what a device is doing; other folders are for tests.

    Attributes:
        proc: the process table.
        sys: the device tree.
        pid: of the process whose descendants count as our own.
    """

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    pid: int = field(default_factory=os.getpid)

    def mains_power(self) -> bool | None:
        """Tell whether the device is fed from outside; ``None`` where no supply is reported.

        A battery that empties means no, whatever is plugged in. A device without any battery often
        reports no supply at all, and then the answer is not known.
        """
        batteries, sources = [], []
        for supply in _folders(self.sys / "class" / "power_supply"):
            kind = _text(supply / "type") or ""
            if _text(supply / "scope") == "Device":  # the battery of a mouse
                continue
            if kind == "Battery":
                batteries.append(_text(supply / "status"))
            elif kind == "Mains" or kind.startswith(("USB", "Wireless")):
                sources.append(_text(supply / "online"))
        if "Discharging" in batteries:
            return False
        if any(online not in {None, "", "0"} for online in sources):
            return True
        if batteries and all(status in {"Charging", "Full"} for status in batteries):
            return True
        return False if sources and all(online == "0" for online in sources) else None

    def battery(self) -> float | None:
        """Return the charge of the device's emptiest battery in percent; ``None`` for none."""
        supplies = _folders(self.sys / "class" / "power_supply")
        own = [supply for supply in supplies if _text(supply / "scope") != "Device"]
        told = [_text(supply / "capacity") for supply in own if _text(supply / "type") == "Battery"]
        charges = [_number(text or "") for text in told]
        known = [charge for charge in charges if charge is not None and charge <= _FULL]
        return min(known) if known and len(known) == len(charges) else None

    def temperature(self) -> float | None:
        """Return how hot the hottest thermal zone is, in degrees Celsius; ``None`` for none."""
        zones = _folders(self.sys / "class" / "thermal")
        told = [_number(_text(zone / "temp") or "") for zone in zones]
        # A sensor that is off says 0 or less.
        known = [thousandths / 1000.0 for thousandths in told if thousandths]
        return max(known, default=None)

    def networks(self) -> frozenset[str] | None:
        """Return the kinds of network that packets leave by: wired, wifi, mobile; or ``None``.

        The kind is that of the interfaces of the default routes with the least metric. A tunnel
        and a container's interface have no kind of their own, so the answer is not known. Whether
        a network is metered is not known to the kernel.
        """
        kinds = [self._kind(name) for name in sorted(self._outward())]
        known = frozenset(kind for kind in kinds if kind is not None)
        return known if kinds and len(known) == len(set(kinds)) else None

    def load(self) -> float | None:
        """Return the load average of the last minute over all cores, not divided by their number.

        It counts every program, this one included.
        """
        words = (_text(self.proc / "loadavg") or "").split()
        return _number(words[0]) if words else None

    def usage(self) -> Usage | None:
        """Return how much processor time was used since the machine started."""
        first = (_text(self.proc / "stat") or "").partition("\n")[0].split()
        counts = [_number(word) for word in first[1:9]]
        if first[:1] != ["cpu"] or len(counts) < 8 or None in counts:
            return None
        ticks = [count for count in counts if count is not None]
        hertz = float(os.sysconf("SC_CLK_TCK"))
        total = sum(ticks) / hertz
        # Waiting for a disk is idle, and what other virtual machines took is nobody's here.
        idle = (ticks[3] + ticks[4] + ticks[7]) / hertz
        own = sum(self._ticks(pid) for pid in self.family()) / hertz
        return Usage(at=time.monotonic(), busy=total - idle, total=total, own=own)

    def free_memory(self) -> int | None:
        """Return the bytes that this process and its descendants can have, those they hold too.

        The smaller of what the machine has left and what the control groups of this process allow.
        """
        group = own_group(self.proc / "self" / "cgroup")
        left = available_memory(self.proc / "meminfo", self.sys / "fs" / "cgroup", group)
        if left is None:
            return None
        return left + sum(self._held(pid) for pid in self.family() if pid != self.pid)

    def family(self) -> frozenset[int]:
        """Return the numbers of this process and of all that descend from it."""
        children: dict[int, list[int]] = {}
        for folder in _folders(self.proc):
            if folder.name.isdecimal():
                fields = self._stat(int(folder.name))
                if len(fields) > 1 and fields[1].isdecimal():
                    children.setdefault(int(fields[1]), []).append(int(folder.name))
        found, queue = {self.pid}, [self.pid]
        while queue:
            young = [pid for pid in children.get(queue.pop(), []) if pid not in found]
            found.update(young)
            queue.extend(young)
        return frozenset(found)

    def _stat(self, pid: int) -> list[str]:
        """Return the fields of a process after its name, which may hold anything."""
        return (_text(self.proc / str(pid) / "stat") or "").rpartition(")")[2].split()

    def _ticks(self, pid: int) -> float:
        """Return the ticks that a process and its children that ended have used."""
        fields = self._stat(pid)[11:15]
        return sum(float(word) for word in fields if word.isdecimal())

    def _held(self, pid: int) -> int:
        """Return the bytes of a process that would be free without it."""
        for line in (_text(self.proc / str(pid) / "status") or "").splitlines():
            if line.startswith("RssAnon:"):
                kibibytes = _number(line.split()[1])
                return 0 if kibibytes is None else int(kibibytes) * 1024
        return 0

    def _outward(self) -> frozenset[str]:
        """Return the interfaces of the default routes that are taken first."""
        routes = [*self._ipv4_defaults(), *self._ipv6_defaults()]
        least = min((metric for metric, _ in routes), default=0)
        return frozenset(name for metric, name in routes if metric == least)

    def _ipv4_defaults(self) -> Iterator[tuple[int, str]]:
        """Yield metric and interface of each IPv4 route to everywhere."""
        for line in (_text(self.proc / "net" / "route") or "").splitlines()[1:]:
            words = line.split()
            if len(words) >= 8 and words[1] == words[7] == _GATEWAY and int(words[3], 16) & _UP:
                yield int(words[6]), words[0]

    def _ipv6_defaults(self) -> Iterator[tuple[int, str]]:
        """Yield metric and interface of each IPv6 route to everywhere."""
        for line in (_text(self.proc / "net" / "ipv6_route") or "").splitlines():
            words = line.split()
            usual = len(words) >= 10 and words[:2] == [_IPV6_NOWHERE, "00"] and words[9] != "lo"
            if usual and int(words[8], 16) & _UP:
                yield int(words[5], 16), words[9]

    def _kind(self, interface: str, depth: int = 4) -> str | None:
        """Return the kind of an interface; of a bridge or bond, that of what it is made of."""
        folder = self.sys / "class" / "net" / interface
        event = dict(
            line.partition("=")[::2] for line in (_text(folder / "uevent") or "").splitlines()
        )
        kind = event.get("DEVTYPE", "")
        wireless = any((folder / name).exists() for name in ("wireless", "phy80211"))
        if wireless or kind == "wlan":
            return "wifi"
        if kind == "wwan" or interface.startswith("wwan"):
            return "mobile"
        below = [path.name.removeprefix("lower_") for path in folder.glob("lower_*")]
        if below and depth > 0:
            kinds = {self._kind(name, depth - 1) for name in below}
            return kinds.pop() if len(kinds) == 1 else None
        if kind or _text(folder / "type") != _ETHERNET or not (folder / "device").exists():
            return None
        driver = (folder / "device" / "driver").resolve().name
        if driver in _PHONE_DRIVERS:
            return "mobile"
        return None if driver in _UNCLEAR_DRIVERS else "wired"


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    group: str = "",
) -> int | None:
    """Return the bytes available to this process, or ``None`` where the system does not tell.

    Args:
        meminfo: Linux's memory table.
        cgroup: root of the control groups; inside a container it is the container's own.
        group: the process's group below the root; a service has a limit there.
    """
    lines = (_text(meminfo) or "").splitlines()
    words = next((line.split() for line in lines if line.startswith("MemAvailable")), [])
    kibibytes = _number(words[1]) if len(words) > 1 else None
    if kibibytes is None:
        return None
    rooms = [room for room in map(_room, _upwards(cgroup, group)) if room is not None]
    return min([int(kibibytes) * 1024, *rooms])


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup"), group: str = "") -> int | None:
    """Return the least limit in bytes of a control group and those around it; ``None`` for none."""
    limits = [_number(_text(folder / "memory.max") or "") for folder in _upwards(cgroup, group)]
    return min((int(limit) for limit in limits if limit is not None), default=None)


def own_group(table: Path = Path("/proc/self/cgroup")) -> str:
    """Return the control group of this process, as a path below the root of them all."""
    lines = (_text(table) or "").splitlines()
    return next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")


def _upwards(root: Path, group: str) -> Iterator[Path]:
    """Yield the folder of a control group and of every group around it."""
    parts = [part for part in group.split("/") if part not in {"", ".", ".."}]
    for count in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:count])


def _room(folder: Path) -> int | None:
    """Return the bytes that a control group has left; files that it only caches do not count."""
    limit, used = (_number(_text(folder / f"memory.{name}") or "") for name in ("max", "current"))
    if limit is None or used is None:
        return None
    lines = (_text(folder / "memory.stat") or "").splitlines()
    cached = [_number(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
    return max(0, int(limit - used + sum(count or 0.0 for count in cached)))


def _folders(path: Path) -> list[Path]:
    """Return what lies in a folder; nothing where there is none."""
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str | None:
    """Return a file of the kernel's, or ``None`` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(word: str) -> float | None:
    """Return a plain decimal number; ``None`` for any other word."""
    return float(word) if word.replace(".", "", 1).isdecimal() else None
