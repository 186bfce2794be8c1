"""What is wrong with a scenario: codes 10 to 19."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors.root import FedSLMError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in a scenario: its key path, what is wrong, what to do.

    ``code`` is the code of the :class:`ConfigError` subclass that the problem alone would raise.
    """

    key: str
    message: str
    hint: str = ""
    code: str = "invalid-value"

    def __str__(self) -> str:
        """Return ``key: message hint``."""
        return f"{self.key}: {self.message} {self.hint}".strip()


class ConfigError(FedSLMError, ValueError):
    """A scenario is wrong; ``problems`` lists everything found at once."""

    code = "config"
    exit_code = 10

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form, with one object per problem."""
        problems = [{"key": p.key, "message": p.message, "hint": p.hint} for p in self.problems]
        return {**super().to_dict(), "problems": problems}


class UnknownKey(ConfigError):
    """A scenario has a section or key that does not exist."""

    code = "unknown-key"
    exit_code = 11


class InvalidValue(ConfigError):
    """A value is missing, has the wrong type, is not finite, or is out of range."""

    code = "invalid-value"
    exit_code = 12


class EmptyPopulation(ConfigError):
    """There is no client to train."""

    code = "empty-population"
    exit_code = 13


class ConflictingSettings(ConfigError):
    """Two settings exclude each other; the message says why."""

    code = "conflicting-settings"
    exit_code = 14


class ScenarioNotFound(ConfigError):
    """Neither a built-in scenario nor a file has this name."""

    code = "scenario-not-found"
    exit_code = 15
