"""What happens to a round's charge when the round is over."""

from __future__ import annotations

import logging

from server.budget import Charge, RunBudget
from server.release import Release
from shared.errors import QuorumNotReached

logger = logging.getLogger("fedslm.server")

_MOST_ABORTED = 3


class Settler:
    """Commits charges, gives those back that nobody could read, and counts aborted rounds.

    Args:
        budget: charged the rounds.
    """

    def __init__(self, budget: RunBudget) -> None:
        self._budget = budget
        self._aborted = 0

    def settle(self, charge: Charge, release: Release, server_round: int) -> None:
        """Commit what a round was charged; give it back where nobody could read anything.

        Raises:
            QuorumNotReached: after several aborted rounds in a row.
        """
        if release.failure is None:
            self._budget.commit(charge)
            self._aborted = 0
            return
        paid = "what it was charged stays charged" if release.opened else "it costs nothing"
        logger.warning("round %d was aborted, %s: %s", server_round, paid, release.failure)
        if not release.opened:
            self._budget.abandon(charge)
        self._aborted += 1
        if self._aborted >= _MOST_ABORTED:
            msg = f"Rounds {server_round - _MOST_ABORTED + 1} to {server_round} were aborted: "
            hint = "Find out why clients drop out, or plan for fewer survivors; --resume goes on."
            raise QuorumNotReached(f"{msg}{release.failure}", hint=hint)
