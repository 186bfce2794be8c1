"""Structured logs: one JSON object a line, of facts that are nobody's private data.

A line holds method, status, duration, sizes and the name under which the operator enrolled the
caller. It never holds addresses, tokens, requests, answers or an exception's text.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOGGER = "fedslm.control"

_MAX_BYTES = 10_000_000
_KEPT = 5

logger = logging.getLogger(LOGGER)


class JsonLines(logging.Formatter):
    """Writes a record's facts as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; an exception's type is kept, its text is not."""
        facts = getattr(record, "facts", {})
        moment = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **facts}, sort_keys=True, default=str)


def write_to(folder: Path) -> logging.Handler:
    """Log to ``control.jsonl`` in a folder, mode 600, with older files beside it.

    Returns:
        The handler, to be closed by whoever asked for it.
    """
    path = folder / "control.jsonl"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    path.chmod(0o600)
    handler = RotatingFileHandler(path, maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return handler


def stop(handler: logging.Handler) -> None:
    """Log there no more."""
    logger.removeHandler(handler)
    handler.close()


def event(name: str, facts: Mapping[str, object], *, level: int = logging.INFO) -> None:
    """Log one event with its public facts."""
    logger.log(level, name, extra={"facts": dict(facts)})


def failure(method: str, error: BaseException) -> None:
    """Log an error that is a fault of the server: its type and where, never its text."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = [f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}" for frame in frames]
    facts = {"method": method, "error": type(error).__name__, "where": where}
    event("failure", facts, level=logging.ERROR)
