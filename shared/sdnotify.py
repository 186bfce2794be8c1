"""Telling systemd how a service is: ready, alive, stopping. Its protocol is one datagram a message.

Source: sd_notify(3) and sd_watchdog_enabled(3). Outside systemd nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

_MICROSECONDS = 1_000_000


class Notifier:
    """The way to the service manager, as the environment describes it.

    Args:
        environment: variables of the process; ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and
            ``WATCHDOG_PID`` are read.
        pid: of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, *, pid: int = 0) -> None:
        variables = os.environ if environment is None else environment
        self._address = variables.get("NOTIFY_SOCKET", "")
        meant = variables.get("WATCHDOG_PID", "") in {"", str(pid or os.getpid())}
        period = variables.get("WATCHDOG_USEC", "")
        usable = meant and period.isdecimal() and int(period) > 0
        self._period = int(period) / _MICROSECONDS if usable else None
        self._fed = float("-inf")

    @property
    def watchdog_seconds(self) -> float | None:
        """Return how long the service may be silent before it is restarted; ``None``: for ever."""
        return self._period

    def ready(self, status: str) -> bool:
        """Say that the service runs; returns whether somebody was told."""
        return self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> bool:
        """Say in one line what the service does."""
        return self._send(f"STATUS={_line(status)}")

    def alive(self, *, now: float | None = None) -> bool:
        """Feed the watchdog, at most four times in its period; call it from the loop that works."""
        moment = time.monotonic() if now is None else now
        if self._period is None or moment - self._fed < self._period / 4:
            return False
        self._fed = moment
        return self._send("WATCHDOG=1")

    def stopping(self) -> bool:
        """Say that the service is on its way out."""
        return self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        """Send one datagram; a manager that does not listen is no reason to stop."""
        if self._address[:1] not in {"/", "@"} or not hasattr(socket, "AF_UNIX"):
            return False
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(message.encode("utf-8"), address)
        except OSError:
            return False
        return True


def _line(text: str) -> str:
    """Return a text without line breaks, which would start another field."""
    return " ".join(text.split())
