"""Clients whose turn comes soon, computed together with the one whose turn it is.

A simulation knows the order in which its clients will be called. What is computed ahead is kept
until that client is called with the very instruction it was computed for, and used once; anything
else is a miss, and the client is computed alone. A group depends on the order of the calls alone,
so that a run that was stopped and taken up again makes the same groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from shared.wire import Instruction

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.config import RunConfig

Result = TypeVar("Result")

_MOST_CLIENTS = 64
_ADAPTER_ROOM = 64 << 20  # bytes for the adapters of a group, their gradients and their results
_COPIES = 16  # four copies of a float32
_CACHED_NUMBERS = 200_000  # activations of one tensor that a core keeps near itself
_FEWEST_TOKENS = 256


class LookAhead(Generic[Result]):
    """Results of one kind of work, at most one group of them in memory.

    Args:
        compute: takes clients and an instruction, and returns what it could compute of them
            together; a client that it leaves out is computed alone when its turn comes.
        clients: the size of a group; 1 computes nothing ahead.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[int], Instruction], Mapping[int, Result]],
        *,
        clients: int,
    ) -> None:
        self._compute = compute
        self._clients = clients
        self._told: Instruction | None = None
        self._due: set[int] = set()
        self._held: dict[int, Result] = {}

    def expect(
        self, index: int, instruction: Instruction, coming: Iterable[tuple[int, Instruction]]
    ) -> None:
        """Be told whose turn it is and who comes next; computes the next group if it is time.

        Args:
            index: the client that is about to be called.
            instruction: what it is told.
            coming: the clients after it with what they are told, in order; read as far as needed.
        """
        if self._clients == 1:
            return
        if index in self._due and self._is_for(instruction):
            self._due.discard(index)
            return
        group = [index]
        for other, told in coming:
            if len(group) == self._clients or not _same_work(instruction, told):
                break
            group.append(other)
        # Noted before the work: should it fail, every client of the group is computed alone.
        self._told, self._due, self._held = instruction, set(group[1:]), {}
        if len(group) > 1:
            self._held = dict(self._compute(group, instruction))

    def take(self, index: int, instruction: Instruction) -> Result | None:
        """Return what was computed for a client, once; None if it must be computed now."""
        result = self._held.pop(index, None)
        return result if self._is_for(instruction) else None

    def _is_for(self, instruction: Instruction) -> bool:
        """Tell whether the group was computed for an instruction."""
        return self._told is not None and _same_work(self._told, instruction)


def _same_work(one: Instruction, other: Instruction) -> bool:
    """Tell whether two instructions ask a client for the same local work."""
    return one is other or (
        (one.server_round, one.config_digest, one.plan_digest, one.empty)
        == (other.server_round, other.config_digest, other.plan_digest, other.empty)
        and np.array_equal(one.vector, other.vector)
    )


def group_size(config: RunConfig, *, dimension: int) -> int:
    """Return how many clients are computed at once: as the scenario says, or by memory.

    Args:
        config: the scenario.
        dimension: number of trained parameters.
    """
    said = config.performance.cohort_batch
    if said != "auto":
        return said
    return max(1, min(_MOST_CLIENTS, _ADAPTER_ROOM // (_COPIES * dimension)))


def tokens_at_once(config: RunConfig, model: AdaptedModel, *, examples: int) -> int:
    """Return how many tokens go through the model at once.

    As many as so many examples of full length, which bounds memory; on a CPU only as many as keep
    the activations near the core, since more were measured to be slower (docs/log.md).

    Args:
        config: the scenario.
        model: the adapted base.
        examples: the scenario's bound on examples at once.
    """
    most = examples * config.data.max_length
    if model.device.type != "cpu":
        return most
    base: Any = model.base.model
    width = int(base.get_input_embeddings().weight.shape[-1])
    return min(most, max(_FEWEST_TOKENS, _CACHED_NUMBERS // width))
