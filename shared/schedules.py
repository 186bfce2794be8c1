"""How a number changes over the rounds of a run, from the scenario and the round alone.

Server and clients compute it by themselves, so nothing about it travels.
"""

from __future__ import annotations

import math
from typing import Literal

from shared.errors import InvalidValue

ScheduleName = Literal["constant", "linear", "cosine"]


def rate_factor(
    schedule: ScheduleName, *, server_round: int, rounds: int, warmup_rounds: int = 0
) -> float:
    """Return what a learning rate is multiplied by in a round, above 0 and at most 1.

    Of W warm-up rounds, round t has ``t / (W + 1)``. The rounds after them fall from 1 along a line
    or half a cosine whose zero is the round after the last one, so that no round stands still.

    Args:
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        server_round: from 1 to ``rounds``.
        rounds: planned number of rounds.
        warmup_rounds: rounds before the full rate, fewer than ``rounds``.

    Raises:
        InvalidValue: if the round is not a planned one, or the warm-up leaves no round.
    """
    if not (0 <= warmup_rounds < rounds and 1 <= server_round <= rounds):
        msg = f"server_round={server_round!r}, warmup_rounds={warmup_rounds!r}, rounds={rounds!r}"
        msg += ": expected a planned round, and a warm-up that ends before the run."
        raise InvalidValue(msg)
    if server_round <= warmup_rounds:
        return server_round / (warmup_rounds + 1)
    done = (server_round - 1 - warmup_rounds) / (rounds - warmup_rounds)
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0
