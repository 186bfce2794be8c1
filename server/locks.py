"""Locks that are also looked at: looking holds them for a moment, so who wants them waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shared.errors import AlreadyRunning
from shared.privatefiles import held

_PAUSE = 0.05


@contextmanager
def held_within(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock file, after waiting for it so long.

    Raises:
        AlreadyRunning: if another process still holds it then.
        FleetError: if the file cannot be opened.
    """
    end = time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(path))
            except AlreadyRunning:
                if time.monotonic() >= end:
                    raise
                time.sleep(_PAUSE)
            else:
                break
        yield


def is_held(path: Path) -> bool:
    """Tell whether a process holds a lock file."""
    if not path.exists():
        return False
    try:
        with held(path):
            return False
    except AlreadyRunning:
        return True
