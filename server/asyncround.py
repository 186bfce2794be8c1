"""One step of an asynchronous run: who begins, what is computed, and what the step counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.aggregation import Aggregate
from server.buffered import BufferedSchedule, Task
from server.collect import Traffic
from server.liverounds import LiveRounds
from server.setup import RunSetup
from server.timing import BYTES_A_NUMBER, SECONDS, clock_of
from server.updatebuffer import Holder, UpdateBuffer
from shared.clock import SimulatedClock
from shared.lora import Vector
from shared.privacy.noise import SEEDED

Collect = Callable[[Sequence[int], Holder], Traffic]
"""Sends the round to some clients, and hands their updates to the holder."""


class AsyncRounds:
    """Keeps what an asynchronous run remembers between its steps.

    The answers of the clients that begin before a step are computed in that step, together, also
    those that are counted later: they wait with the server. So a step that is done again after a
    crash computes, and charges, the same participations.

    Args:
        setup: what the run is, with a buffer.
        clock: says when answers arrive.
        size: number of parameters.
    """

    def __init__(self, setup: RunSetup, clock: SimulatedClock, *, size: int) -> None:
        plan, buffer = setup.plan, setup.config.buffer
        self._seeded = plan.noise_source == SEEDED
        self._schedule = BufferedSchedule(
            clock,
            buffer,
            population=setup.population,
            seed=setup.config.run.seed,
            quota=plan.max_participations if plan.mode == "example" else None,
        )
        self._updates = UpdateBuffer(buffer, size=size)
        self.size = buffer.size or 1
        self._numbers = size * BYTES_A_NUMBER
        self._up = self._down = self._numbers
        self._answering: list[int] = []
        self._counted: list[Task] = []
        self._age = 0.0

    def begin(
        self, server_round: int, taken: Mapping[int, int], there: Callable[[], Sequence[int]]
    ) -> list[int]:
        """Let time pass until a step's buffer is full; return who began, to be charged.

        Args:
            server_round: the step.
            taken: participations that each client was charged for. A step that is done again with
                seeded noise was charged before, and is the same step; only with entropy of the
                operating system does the ledger know of more than the checkpoint.
            there: says who is connected; here the clock knows who is there.
        """
        del there
        begun, self._counted = self._schedule.advance(
            server_round,
            down=self._down,
            up=self._up,
            taken={} if self._seeded else taken,
        )
        self._answering = sorted(task.client for task in begun if task.answers)
        return sorted(task.client for task in begun)

    def step(self, server_round: int, collect: Collect) -> tuple[Aggregate | None, int, Traffic]:
        """Compute the answers of who began, and release the mean of what fills the buffer.

        Returns:
            The mean, how many answers are in it, and the traffic.
        """
        traffic = collect(self._answering, self._updates.holder(server_round))
        self._measured(traffic)
        aggregate, self._age = self._updates.release(self._counted, server_round=server_round)
        return aggregate, 0 if aggregate is None else aggregate.count, traffic

    def notes(self) -> dict[str, float | int]:
        """Return what a round's metrics line says of time and age."""
        return {
            SECONDS: self._schedule.now,
            "staleness": self._age,
            "in_flight": self._schedule.in_flight,
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep beside the tensors."""
        return {**self._schedule.state(), "bytes": [self._down, self._up]}

    def tensors(self) -> dict[str, Vector]:
        """Return the updates that wait, by name."""
        return self._updates.tensors()

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Vector]) -> None:
        """Take up a checkpoint.

        Raises:
            NotResumable: if it is damaged or not of an asynchronous run.
        """
        self._schedule.restore(state)
        self._updates.restore(tensors)
        self._down, self._up = (int(value) for value in state.get("bytes", (self._numbers,) * 2))

    def _measured(self, traffic: Traffic) -> None:
        """Take the bytes of the next step from those of this one."""
        self._up, self._down = traffic.up or self._up, traffic.down or self._down


def async_rounds(setup: RunSetup, *, size: int) -> AsyncRounds | LiveRounds | None:
    """Return what an asynchronous run needs: on the clock, or on devices; None without a buffer."""
    if not setup.config.buffer.used:
        return None
    clock = clock_of(setup.config)
    return LiveRounds(setup, size=size) if clock is None else AsyncRounds(setup, clock, size=size)
