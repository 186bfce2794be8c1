"""Reads files that other processes write: bounded, and parsed once while they do not change."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LARGEST = 64 * 1024 * 1024
_KEPT = 512


class FileCache:
    """Remembers what was made of files, by their time and size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], tuple[tuple[int, int, int], Any]] = OrderedDict()

    def get(self, path: Path, made: Callable[[bytes], Any]) -> Any:  # noqa: ANN401 whatever made returns
        """Return ``made(bytes of the file)``, or None if it is missing, too large or unreadable.

        Args:
            path: a plain file; a link is not followed.
            made: a function that is always the same for one kind of file; its result is shared.
        """
        try:
            if path.is_symlink():
                return None
            stat = path.stat()
            key, state = (str(path), made.__name__), (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            with self._lock:
                known = self._known.get(key)
                if known is not None and known[0] == state:
                    self._known.move_to_end(key)
                    return known[1]
            if stat.st_size > LARGEST:
                return None
            found = made(path.read_bytes())
        except OSError:
            return None
        with self._lock:
            self._known[key] = (state, found)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found


def json_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object; empty for anything else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def json_lines(data: bytes) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines up to a torn or foreign one."""
    records = []
    for line in data.splitlines():
        found = json_object(line)
        if not found:
            break
        records.append(found)
    return records


def section(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a table within a table; empty if it is none."""
    found = table.get(key)
    return found if isinstance(found, Mapping) else {}


def rows(table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Return a list of tables within a table; whatever else is in it is left out."""
    found = table.get(key)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
