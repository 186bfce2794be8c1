"""How a problem of a file's settings is told: of two that exclude each other, and of one alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.errors import ConflictingSettings, Problem


def conflict(*, key: str, message: str, hint: str = "") -> Problem:
    """Make a problem that is about two settings."""
    return Problem(key=key, message=message, hint=hint, code=ConflictingSettings.code)


def expected(error: Mapping[str, Any]) -> str:
    """Return what was expected in place of a value, without the names of pydantic's types.

    Args:
        error: one of a ``ValidationError``'s ``errors()``.
    """
    limits: Mapping[str, Any] = error.get("ctx") or {}
    for word, limit in (("at least", "min_length"), ("at most", "max_length")):
        if limit in limits and error["type"] in {"too_short", "too_long"}:
            count = int(limits[limit])
            return f"{word} {count} value{'' if count == 1 else 's'}"
    return str(error["msg"]).removeprefix("Input should be ")
