"""The buffer of an asynchronous run: updates that wait for their step, and their weights by age."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.aggregation import LONGEST_UPDATE, Aggregate
from server.buffered import Task
from shared import validate
from shared.configclock import BufferSection
from shared.errors import NotResumable
from shared.lora import Vector
from shared.privacy.norms import add_scaled, norm_of


def staleness_weight(settings: BufferSection, age: int) -> float:
    """Return the weight of an update by its age.

    Args:
        settings: the scenario's ``buffer`` section.
        age: steps of the server between the version that a client was given and the step in which
            its answer is counted, >= 0.

    Returns:
        1 (constant), or ``(1 + age) ** -exponent`` (polynomial). Weights are not normalised: a
        buffer of old answers moves the adapter less.

    Raises:
        InvalidValue: for a negative age.
    """
    validate.non_negative(age=age)
    if settings.staleness == "constant":
        return 1.0
    return float((1 + age) ** -settings.exponent)


class UpdateBuffer:
    """Holds updates from the step in which they were computed to the one that counts them.

    An update waits here, and in the checkpoint, as its client released it: noised in mode
    ``example``, unprotected in mode ``none``.

    Args:
        settings: the scenario's ``buffer`` section.
        size: number of parameters.
    """

    def __init__(self, settings: BufferSection, *, size: int) -> None:
        self._settings = settings
        self._size = size
        self._held: dict[tuple[int, int], Vector] = {}

    def holder(self, server_round: int) -> Holder:
        """Return what takes the answers of one exchange."""
        return Holder(lambda client, vector: self._hold(client, server_round, vector))

    def release(
        self, counted: Sequence[Task], *, server_round: int
    ) -> tuple[Aggregate | None, float]:
        """Return the weighted mean of what was counted, and the mean age; forget the updates.

        A client that answered with a failure fills its place in the buffer with nothing. The sum
        is over the number of updates, not of their weights. An update that is not finite counts as
        zero, as in a synchronous round.
        """
        total: NDArray[np.float64] = np.zeros(self._size, dtype=np.float64)
        ages = []
        for task in sorted(counted, key=lambda task: (task.client, task.server_round)):
            vector = self._held.pop((task.client, task.server_round), None)
            if vector is None:
                continue
            age = server_round - task.server_round
            norm = norm_of(vector)
            if np.isfinite(norm):
                weight = staleness_weight(self._settings, age)
                add_scaled(total, vector, weight * min(1.0, LONGEST_UPDATE / max(norm, 1.0)))
            ages.append(age)
        if not ages:
            return None, 0.0
        return Aggregate(vector=total / len(ages), count=len(ages)), sum(ages) / len(ages)

    def tensors(self) -> dict[str, Vector]:
        """Return the updates that a checkpoint must keep, by name."""
        return {f"{client}.{number}": held for (client, number), held in self._held.items()}

    def restore(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Take up a checkpoint's updates.

        Raises:
            NotResumable: if they are not of this run.
        """
        self._held = {}
        for name, value in tensors.items():
            client, dot, number = name.partition(".")
            if not (dot and client.isdecimal() and number.isdecimal()) or value.shape != (
                self._size,
            ):
                msg = "The checkpoint holds an update of another shape or name."
                raise NotResumable(msg, hint="Start a new run in another folder.")
            self._held[int(client), int(number)] = np.array(value, dtype=np.float32)

    def _hold(self, client: int, server_round: int, vector: Vector) -> None:
        """Keep an update; it is a view of a message that goes."""
        self._held[client, server_round] = np.array(vector, dtype=np.float32)


class Holder:
    """Takes updates in the place of an aggregator, and remembers whose they are.

    Args:
        keep: is given each client and update.
    """

    def __init__(self, keep: Callable[[int, Vector], None]) -> None:
        self._keep = keep
        self._client = 0

    def of(self, client: int) -> None:
        """Be told whose update comes next."""
        self._client = client

    def add(self, vector: Vector) -> float:
        """Keep an update; return its norm as it came."""
        self._keep(self._client, vector)
        return norm_of(vector)

    def release(self) -> Aggregate | None:
        """Return nothing: what is kept is released when its buffer is full."""
        return None
