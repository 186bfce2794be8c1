"""A client's vote: did the adapter get better on the records that it never trained on?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.errors import SchemaMismatch

if TYPE_CHECKING:
    from shared.lora import Vector
    from shared.privacy.plan import PrivacyPlan
    from shared.wire import Instruction


def require_reference(plan: PrivacyPlan, instruction: Instruction) -> None:
    """Refuse a second adapter in a round without a vote, and a round with a vote without one.

    The plan alone says which rounds have a vote: a server cannot ask for one more.

    Raises:
        SchemaMismatch: if the instruction says otherwise.
    """
    due = plan.vote is not None and plan.vote.taken(instruction.server_round)
    if due != (instruction.reference is not None):
        msg = f"Round {instruction.server_round} has {'a' if due else 'no'} vote by the plan, and "
        msg += f"the instruction {'lacks' if due else 'has'} an adapter to compare with."
        raise SchemaMismatch(msg)
    if (
        instruction.reference is not None
        and instruction.reference.shape != instruction.vector.shape
    ):
        msg = "The adapter to compare with has another size."
        raise SchemaMismatch(msg)


def vote_on(
    loss_of: Callable[[Vector], float], newest: Vector, best: Vector, *, min_improvement: float
) -> int:
    """Return a client's vote, of magnitude at most 1 whatever its records are.

    Args:
        loss_of: gives the mean loss of the client's held-out examples under an adapter.
        newest: the adapter that is judged.
        best: the one it is compared with.
        min_improvement: by how much more than this a loss must be lower.

    Returns:
        1 if the loss fell by more than ``min_improvement``; -1 if not; 0 if a loss is not finite.
    """
    now, before = loss_of(newest), loss_of(best)
    if not (math.isfinite(now) and math.isfinite(before)):
        return 0
    return 1 if now < before - min_improvement else -1
