"""Clients whose turn comes soon, computed together with the one whose turn it is.

A simulation knows the order in which its clients will be called. What is computed ahead is kept
until that client is called with the very instruction it was computed for, and used once; anything
else is a miss, and the client is computed alone. Groups depend on the order of the calls alone,
so that a run that was stopped and taken up again makes the same groups, and so does one with more
or fewer helpers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from shared.residual import same
from shared.wire import Instruction

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.config import RunConfig

Result = TypeVar("Result")
Done = TypeVar("Done", covariant=True)

_MOST_CLIENTS = 32
_MOST_AHEAD = 4096  # clients of a plan, of which only the numbers are held
_ADAPTER_ROOM = 64 << 20  # bytes for the adapters of a group, their gradients and their results
_COPIES = 16  # four copies of a float32
_CACHED_NUMBERS = 200_000  # activations of one tensor that a core keeps near itself
_FEWEST_TOKENS = 256


class Helper(Protocol[Done]):
    """Computes one group at a time somewhere else, while this process computes another."""

    def begin(self, clients: Sequence[int], instruction: Instruction) -> None:
        """Start on a group; whatever was begun before and not asked for is forgotten."""

    def end(self) -> Mapping[int, Done] | None:
        """Wait for the group begun last; None if it could not be computed there."""


class LookAhead(Generic[Result]):
    """Results of one kind of work, at most one group of them in memory, and one at each helper.

    Args:
        compute: takes clients and an instruction, and returns what it could compute of them
            together; a client that it leaves out is computed alone when its turn comes.
        clients: the largest size of a group; 1 computes nothing ahead.
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
        self._groups: deque[list[int]] = deque()
        self._turn = 0
        self._helpers: Sequence[Helper[Result]] = ()

    def helped_by(self, helpers: Sequence[Helper[Result]]) -> None:
        """Let every group but the first of each ``len(helpers) + 1`` be computed elsewhere.

        Args:
            helpers: what they return must equal what ``compute`` does.
        """
        self._helpers = tuple(helpers)
        self._groups.clear()

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
        known = self._is_for(instruction)
        if known and index in self._due:
            self._due.discard(index)
            return
        if not (known and self._groups and self._groups[0][0] == index):
            self._plan(index, instruction, coming)
        group = self._groups.popleft()
        # Noted before the work: should it fail, every client of the group is computed alone.
        self._due, self._held = set(group[1:]), {}
        self._held = dict(self._computed(group, instruction))

    def take(self, index: int, instruction: Instruction) -> Result | None:
        """Return what was computed for a client, once; None if it must be computed now."""
        result = self._held.pop(index, None)
        return result if self._is_for(instruction) else None

    def _plan(
        self, index: int, instruction: Instruction, coming: Iterable[tuple[int, Instruction]]
    ) -> None:
        """Cut the clients that are asked for the same work into groups of nearly one size."""
        clients = [index]
        for other, told in coming:
            if len(clients) == _MOST_AHEAD or not _same_work(instruction, told):
                break
            clients.append(other)
        count = math.ceil(len(clients) / self._clients)
        starts = [len(clients) * part // count for part in range(count + 1)]
        self._groups = deque(clients[start:stop] for start, stop in pairwise(starts))
        self._told, self._turn = instruction, 0
        for helper, group in zip(self._helpers, list(self._groups)[1:], strict=False):
            helper.begin(group, instruction)

    def _computed(self, group: Sequence[int], instruction: Instruction) -> Mapping[int, Result]:
        """Return the results of the group whose turn it is, from here or from its helper."""
        turn, self._turn = self._turn, self._turn + 1
        workers = len(self._helpers) + 1
        if turn % workers == 0:
            return self._compute(group, instruction) if len(group) > 1 else {}
        helper = self._helpers[turn % workers - 1]
        found = helper.end()
        if len(self._groups) >= workers:
            helper.begin(self._groups[workers - 1], instruction)
        return self._compute(group, instruction) if found is None else found

    def _is_for(self, instruction: Instruction) -> bool:
        """Tell whether the groups were made for an instruction."""
        return self._told is not None and _same_work(self._told, instruction)


def _same_work(one: Instruction, other: Instruction) -> bool:
    """Tell whether two instructions ask a client for the same local work."""
    return one is other or (
        (one.server_round, one.config_digest, one.plan_digest, one.empty)
        == (other.server_round, other.config_digest, other.plan_digest, other.empty)
        and np.array_equal(one.vector, other.vector)
        and same(one.residual, other.residual)
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
