"""A running node fetches the adapter that its server put in use, so that nobody has to ask for it.

In a process of its own, as the renewal of certificates: the client of the control service is larger
than the whole node. A device that is paused by its owner's conditions fetches nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from client.fleet.pacing import jittered
from shared.errors import ServerUnreachable

if TYPE_CHECKING:
    from client.home import DeviceHome

FIRST_SECONDS = 90.0
EVERY_SECONDS = 900.0
_PATIENCE = 900.0
COMMAND = (sys.executable, "-P", "-m", "simulations.cli", "client", "fetch", "--json")

Told = Callable[[Mapping[str, Any]], None]


@contextmanager
def fetching(
    home: DeviceHome,
    told: Told,
    *,
    allowed: Callable[[], bool] = lambda: True,
    command: Sequence[str] = COMMAND,
    first: float = FIRST_SECONDS,
    every: float = EVERY_SECONDS,
) -> Iterator[Callable[[], None]]:
    """Look now and then, while the block runs, for an adapter; yields a way to look at once.

    Args:
        home: the device.
        told: takes an event when another adapter is in use, and one when a new reason keeps the
            device from it. A server that is away is not worth one.
        allowed: whether the owner's conditions hold.
        command: fetches; the device's folder is added.
        first: seconds until the first look.
        every: seconds between two looks; a quarter more or less.
    """
    over, wake = threading.Event(), threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def look() -> None:
        pause, said = first, ""
        while True:
            wake.wait(jittered(pause))
            wake.clear()
            if over.is_set():
                return
            pause = every
            if not allowed() or home.left:
                continue
            event = _fetch([*command, "--home", str(home.path)], running)
            code = "" if event is None else str(event.get("code", ""))
            if event is not None and not over.is_set() and (not code or code != said):
                told(event)
            said = code

    thread = threading.Thread(target=look, name="adapters", daemon=True)
    thread.start()
    try:
        yield wake.set
    finally:
        over.set()
        wake.set()
        for process in running:
            process.kill()
        thread.join(2.0)


def _fetch(command: list[str], running: list[subprocess.Popen[bytes]]) -> dict[str, Any] | None:
    """Fetch once; return what is worth telling."""
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program, no shell
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        return {"event": "adapter-not-fetched", "code": type(error).__name__}
    running.append(process)
    try:
        out, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"event": "adapter-not-fetched", "code": "timeout"}
    finally:
        running.clear()
    return _event(out)


def _event(out: bytes) -> dict[str, Any] | None:
    """Read what the program said."""
    try:
        found = json.loads(out)
    except ValueError:
        return {"event": "adapter-not-fetched", "code": "no-answer"}
    code = found.get("error")
    if code is not None:
        if code == ServerUnreachable.code:
            return None
        return {"event": "adapter-refused", "code": code, "reason": found.get("message", "")}
    if not found.get("changed"):
        return None
    return {"event": "adapter-in-use", "adapter": found["adapter"]}
