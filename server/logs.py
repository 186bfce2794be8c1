"""Structured logs: one JSON object a line, in files that are rotated by size."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 5_000_000
KEPT: Final = 5
_LONGEST_LINE = 4000
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, kind of exception.

    A traceback names files and lines of code but may quote data; only the exception's class is
    written.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_LONGEST_LINE],
        }
        process = getattr(record, "process_of", None)
        if isinstance(process, str):
            fields["process"] = process
        if record.exc_info is not None and record.exc_info[0] is not None:
            fields["exception"] = record.exc_info[0].__name__
        return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def log_as_json(level: int = logging.INFO) -> None:
    """Send this process's log to stderr, where the supervisor picks it up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class LineLog:
    """The rotated file of one process: takes its output line by line.

    Args:
        path: the file; rotated at 5 MB, five are kept.
        name: of the process.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        self._handler = RotatingFileHandler(
            path, maxBytes=MOST_BYTES, backupCount=KEPT, encoding="utf-8"
        )
        self._handler.setFormatter(JsonFormatter())

    def write(self, line: str) -> None:
        """Add a line: a JSON object as it is, anything else as the message of one."""
        text = _COLOURS.sub("", line).strip()
        if not text:
            return
        record = logging.LogRecord(self._name, logging.INFO, "", 0, text, None, None)
        if _is_object(text):
            self._handler.setFormatter(_AS_IT_IS)
        else:
            self._handler.setFormatter(_JSON)
        self._handler.handle(record)

    def close(self) -> None:
        """Close the file; what a full disk did not take is lost."""
        with suppress(OSError):
            self._handler.close()


_JSON = JsonFormatter()
_AS_IT_IS = logging.Formatter("%(message)s")


def _is_object(text: str) -> bool:
    """Tell whether a line is a JSON object."""
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
