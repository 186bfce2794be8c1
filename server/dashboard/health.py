"""What the supervisor says about the server's processes, and what the machine says about itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.dashboard.files import section
from server.dashboard.words import number
from server.home import ServerHome
from server.supervisor import read_status


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of the server.

    Attributes:
        name: what it does.
        state: ``"up"``, ``"starting"`` (it runs and does not serve yet) or ``"down"``.
        since: when it was started last, seconds since 1970; None if it is down.
        restarts: how often it was started again.
        last_exit: how it ended the last time; None if it never did.
    """

    name: str
    state: str
    since: float | None
    restarts: int
    last_exit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The server as a whole.

    Attributes:
        running: whether a supervisor holds the folder.
        processes: by name.
        disk_free: bytes.
        disk_total: bytes.
    """

    running: bool
    processes: tuple[Process, ...]
    disk_free: int
    disk_total: int

    @property
    def down(self) -> int:
        """Return how many processes do not serve."""
        return sum(process.state != "up" for process in self.processes)


def read_health(home: ServerHome) -> Health:
    """Read the supervisor's health file and the disk of the server's folder."""
    status = read_status(home)
    usage = shutil.disk_usage(home.path)
    found = section(status, "processes") if status.get("state") != "stopped" else {}
    processes = [_process(name, row) for name, row in found.items() if isinstance(row, Mapping)]
    return Health(
        running=status.get("state") != "stopped",
        processes=tuple(sorted(processes, key=lambda process: process.name)),
        disk_free=usage.free,
        disk_total=usage.total,
    )


def _process(name: str, row: Mapping[str, Any]) -> Process:
    """Return one process of the file."""
    restarts, last_exit = number(row.get("restarts")), number(row.get("last_exit"))
    state = row.get("state")
    return Process(
        name=name[:80],
        state=state if state in {"up", "starting"} else "down",
        since=number(row.get("since")),
        restarts=int(restarts) if restarts is not None else 0,
        last_exit=None if last_exit is None else int(last_exit),
    )
