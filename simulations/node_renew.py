"""A node renews its device's certificate while it runs, so that nobody has to remember it.

In a process of its own, since the control service's client is larger than the whole node; most days
nothing is due, and no process is started.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.errors import FedSLMError

if TYPE_CHECKING:
    from client.home import DeviceHome

FIRST_SECONDS = 60.0
EVERY_SECONDS = 6 * 3600.0
_PATIENCE = 120.0
COMMAND = (sys.executable, "-P", "-m", "simulations.cli", "client", "renew", "--if-due")


@contextmanager
def renewing(
    home: DeviceHome,
    told: Callable[[str], None],
    *,
    command: Sequence[str] = COMMAND,
    first: float = FIRST_SECONDS,
    every: float = EVERY_SECONDS,
) -> Iterator[None]:
    """Look now and then, while the block runs, whether the certificate is due.

    Args:
        home: the device.
        told: takes ``"certificate-renewed"``, or ``"certificate-not-renewed"`` when the server did
            not give a new one; it is asked again at the next look.
        command: fetches a certificate; the device's folder is added.
        first: seconds until the first look.
        every: seconds between two looks.
    """
    over = threading.Event()

    def look() -> None:
        pause = first
        while not over.wait(pause):
            pause = every
            if _due(home):
                told(_renew([*command, "--home", str(home.path)]))

    thread = threading.Thread(target=look, name="renewal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _due(home: DeviceHome) -> bool:
    """Tell whether there is something to renew; a damaged certificate is for the owner."""
    from client.enrolling import renewal_due

    try:
        return renewal_due(home)
    except FedSLMError:
        return False


def _renew(command: list[str]) -> str:
    """Fetch a new certificate and return what came of it."""
    try:
        run = subprocess.run(  # noqa: S603 - our own program, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "certificate-not-renewed"
    return "certificate-renewed" if run.returncode == 0 else "certificate-not-renewed"
