"""What a person sees of the twin's rounds: one line that counts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class TwinProgress:
    """Passes rounds on as one short note each.

    Args:
        rounds: how many there are.
        note: is told.
    """

    def __init__(self, rounds: int, note: Callable[[str], None]) -> None:
        self._rounds = rounds
        self._note = note

    def note(self, text: str) -> None:
        """Pass nothing on: only rounds matter here."""

    def started(self, server_round: int, cohort: int) -> None:
        """Say which round of the twin trains."""
        del cohort
        self._note(f"non-private twin, round {server_round}/{self._rounds}")

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Say nothing."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Say nothing."""
