"""A client's vote: did the adapter get better on the records that it never trained on?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.errors import NoUsableText, SchemaMismatch

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.training import Example
    from shared.config import RunConfig
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
    model: AdaptedModel,
    held_out: Sequence[Example],
    newest: Vector,
    best: Vector,
    *,
    config: RunConfig,
) -> int:
    """Return a client's vote, of magnitude at most 1 whatever its records are.

    Args:
        model: changed: it holds one of the two adapters afterwards.
        held_out: the client's held-out examples.
        newest: the adapter that is judged, of the largest rank.
        best: the one it is compared with.
        config: how much lower a loss must be, and the size of a batch.

    Returns:
        1 if the mean held-out loss fell by more than ``stopping.min_improvement``; -1 if not; 0 if
        nothing is held out, or a loss is not finite.
    """
    from client.evaluation import evaluate  # torch comes with it

    if not held_out:
        return 0
    losses = []
    for vector in (newest, best):
        model.load_vector(vector, config.trained_kinds)
        try:
            result = evaluate(model, held_out, batch_size=config.evaluation.batch_size)
        except NoUsableText:
            return 0
        losses.append(result.loss)
    now, before = losses
    if not (math.isfinite(now) and math.isfinite(before)):
        return 0
    return 1 if now < before - config.stopping.min_improvement else -1
