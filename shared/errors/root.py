"""The root of the tree, and what is wrong before a scenario is read."""

from __future__ import annotations

from typing import ClassVar


class FedSLMError(Exception):
    """The root of every error raised on purpose.

    Args:
        message: what was found and what was expected; safe to show and to log.
        hint: what the reader can do about it.
    """

    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return message and hint on one line."""
        return f"{self.message} {self.hint}".strip()

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form that ``--json`` prints."""
        return {
            "error": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "hint": self.hint,
        }


class UsageError(FedSLMError):
    """The command line cannot be understood."""

    code = "usage"
    exit_code = 2


class MissingDependency(FedSLMError):
    """A package behind an extra is not installed; the hint is the install line."""

    code = "missing-dependency"
    exit_code = 3
