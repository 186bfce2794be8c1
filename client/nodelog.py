"""The log of a node: what it did, for its owner; one JSON object a line, never longer than it may.

Two files at most: the log, and the one before it. A disk that is full costs lines, not the node.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LARGEST = 4 << 20
_LONGEST = 4096
_MODE = 0o600


class NodeLog:
    """Appends events to a file of mode 600; safe to use from several threads.

    Args:
        path: the file.
        largest: bytes after which the file becomes the one before, and a new one begins.
    """

    def __init__(self, path: Path, *, largest: int = LARGEST) -> None:
        self._path = path
        self._largest = largest
        self._lock = threading.Lock()

    def write(self, event: Mapping[str, Any]) -> None:
        """Append an event; what cannot be written is lost."""
        line = json.dumps(dict(event), ensure_ascii=True, sort_keys=True)
        if len(line) > _LONGEST:
            kept = {key: event[key] for key in ("event", "at") if key in event}
            line = json.dumps({**kept, "cut": len(line)}, sort_keys=True)
        with self._lock, suppress(OSError):
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self._path, flags, _MODE)
            with os.fdopen(descriptor, "a", encoding="ascii") as stream:
                stream.write(line + "\n")
                full = stream.tell() > self._largest
            if full:
                self._path.replace(before(self._path))


def before(path: Path) -> Path:
    """Return where the log before a log is kept."""
    return path.with_name(f"{path.name}.1")


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a log and of the one before it, oldest first; damaged lines are left out.

    Args:
        path: the log; it need not exist.
    """
    for file in (before(path), path):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
