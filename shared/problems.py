"""How a rule about several settings reports that a scenario breaks it."""

from __future__ import annotations

from shared.errors import ConflictingSettings, Problem


def conflict(*, key: str, message: str, hint: str = "") -> Problem:
    """Make a problem that is about two settings."""
    return Problem(key=key, message=message, hint=hint, code=ConflictingSettings.code)
