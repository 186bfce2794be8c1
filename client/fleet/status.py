"""What the node tells the device's owner: events for a log, and one small file to look at.

Neither holds text, tensors, paths, or anything of the run but its number. The file is replaced as a
whole; a disk that is full costs the file, not the node.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

Event = Mapping[str, Any]
State = Literal["starting", "joining", "idle", "working", "paused", "away", "denied", "stopped"]
STATUS_FILE: Final = "status.json"
_COUNTED: Final = ("answered", "refused", "failed")


class Board:
    """Keeps the status and passes events on.

    Args:
        path: the status file; its folder exists.
        on_event: called with each event, in the thread that runs the node.
    """

    def __init__(self, path: Path, on_event: Callable[[Event], None]) -> None:
        self._path = path
        self._on_event = on_event
        self._status: dict[str, Any] = {"schema": 1, "pid": os.getpid(), "state": "starting"}
        self._status |= dict.fromkeys(_COUNTED, 0)
        self._status["since"] = _now()

    @property
    def state(self) -> State:
        """Return the state that was noted last."""
        state: State = self._status["state"]
        return state

    def note(self, event: str, *, state: State | None = None, **facts: object) -> None:
        """Pass an event on and bring the file up to date.

        Args:
            event: its name.
            state: the node's state from now on, if it changes.
            facts: of the event: numbers, codes and plain words.
        """
        if state is not None:
            self.enter(state, write=False)
        if event in _COUNTED:
            self._status[event] += 1
            self._status[f"last_{event}"] = _now()
        self._status["last_event"] = {"event": event, "at": _now(), **facts}
        self.write()
        self._on_event({"event": event, "at": _now(), **facts})

    def enter(self, state: State, *, write: bool = True) -> None:
        """Change the state without an event."""
        if state != self._status["state"]:
            self._status |= {"state": state, "since": _now()}
            if write:
                self.write()

    def keep(self, **facts: object) -> None:
        """Keep facts in the file; None removes one. Written with the next event."""
        for name, value in facts.items():
            if value is None:
                self._status.pop(name, None)
            else:
                self._status[name] = value

    def write(self) -> None:
        """Replace the file; it is of mode 600."""
        data = json.dumps({**self._status, "updated": _now()}, indent=2, sort_keys=True)
        temporary = self._path.with_name(f".{self._path.name}.partial")
        with suppress(OSError):
            descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(data + "\n")
            temporary.replace(self._path)


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return what a node wrote last into a device's folder; None if it never ran.

    ``state`` may be old: compare ``pid`` with the processes that run.
    """
    try:
        found = json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _now() -> float:
    """Return the device's time, in seconds since 1970, to a millisecond."""
    return round(time.time(), 3)
