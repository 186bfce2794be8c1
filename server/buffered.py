"""Asynchronous rounds: the server steps on every so many answers, however old they are (FedBuff).

Nguyen et al. 2022, arXiv:2106.06639. A number of clients work at the same time, each on the adapter
as it was when it was asked. The answers that have arrived wait in a buffer; once it is full, the
adapter moves by their mean, each weighted by its age, and the buffer is empty.

Server step ``s`` is round ``s`` of the plan. A client is given each version of the adapter at most
once, so that a participation is still named by client and round, is charged once, before it is
computed, and has its own coins and noise.

Guarantee:
    Who is asked when, and in which step an answer is counted, follows from the scenario, its seed
    and the length of messages: no record moves it, and no update but by the length of its code
    (``link.entropy``), which the network sees anyway. In mode ``example`` each update is noised on
    its client under that client's own charge, and buffer, weights and mean are post-processing of
    what the client released. On real devices the time of an answer would be one more thing that the
    server sees; no event pays for what it says about a client's data.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from shared import validate
from shared.clock import SimulatedClock
from shared.configclock import BufferSection
from shared.errors import NotResumable
from shared.seeding import data_rng

_TRIES = 32


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Task:
    """One participation that is under way; ordered by its end.

    Attributes:
        ends: when its answer arrives, or when the server gives it up.
        client: who works on it.
        server_round: the step before which it was given.
        answers: whether an answer arrives in time.
    """

    ends: float
    client: int
    server_round: int
    answers: bool


class BufferedSchedule:
    """Decides who is asked when, and whose answer fills which buffer.

    Args:
        clock: says when answers arrive.
        settings: the scenario's ``buffer`` section, with size and concurrency.
        population: number of clients.
        seed: the run's seed; clients are drawn by a public stream.
        quota: most participations of a client, or None.
    """

    def __init__(
        self,
        clock: SimulatedClock,
        settings: BufferSection,
        *,
        population: int,
        seed: int,
        quota: int | None = None,
    ) -> None:
        size, concurrency = settings.size or 0, settings.concurrency or 0
        validate.positive_integer(population=population, size=size, concurrency=concurrency)
        self._clock = clock
        self._size, self._concurrency = size, concurrency
        self._population = population
        self._seed = seed
        self._quota = quota
        self.now = 0.0
        self._flight: list[Task] = []
        self._given: dict[int, int] = {}
        self._draws = 0

    @property
    def in_flight(self) -> int:
        """How many clients are at work."""
        return len(self._flight)

    def advance(
        self, server_round: int, *, down: int, up: int, taken: Mapping[int, int]
    ) -> tuple[list[Task], list[Task]]:
        """Let time pass until the buffer is full.

        It stays short where nobody is left to ask: everybody was given this version, or has taken
        part as often as it may.

        Args:
            server_round: the step that the buffer is for.
            down: bytes that a client is sent.
            up: bytes that a client sends.
            taken: participations that each client was charged for, where the ledger counts more
                than this schedule.

        Returns:
            The participations that begin, each client's at most once, and those that are counted.
        """
        begun: dict[int, Task] = {}
        counted: list[Task] = []
        while len(counted) < self._size:
            wake = None
            while len(self._flight) < self._concurrency:
                client, wake = self._draw(begun, taken)
                if client is None:
                    break
                begun[client] = self._begin(client, server_round, down=down, up=up)
            ends = self._flight[0].ends if self._flight else None
            if ends is None and wake is None:
                break
            if ends is None or (wake is not None and wake < ends):
                self.now = wake if wake is not None else self.now
                continue
            task = heapq.heappop(self._flight)
            self.now = max(self.now, task.ends)
            if task.answers:
                counted.append(task)
        return list(begun.values()), counted

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON can hold it."""
        return {
            "now": self.now,
            "flight": [list(astuple(task)) for task in sorted(self._flight)],
            "given": {str(client): count for client, count in self._given.items()},
            "draws": self._draws,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state.

        Raises:
            NotResumable: if it is damaged.
        """
        try:
            self.now = float(state["now"])
            self._flight = [
                Task(ends=float(e), client=int(c), server_round=int(r), answers=bool(a))
                for e, c, r, a in state["flight"]
            ]
            self._given = {int(client): int(n) for client, n in state["given"].items()}
            self._draws = int(state["draws"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = "The checkpoint says nothing of the clients that were at work."
            raise NotResumable(msg, hint="Start a new run in another folder.") from error
        heapq.heapify(self._flight)

    def _begin(self, client: int, server_round: int, *, down: int, up: int) -> Task:
        """Give a client the newest version."""
        at = self._clock.arrival(client, server_round, at=self.now, down=down, up=up)
        close = self.now + self._clock.deadline
        in_time = at is not None and at <= close
        ends = at if at is not None and in_time else close
        task = Task(ends=ends, client=client, server_round=server_round, answers=in_time)
        heapq.heappush(self._flight, task)
        if self._quota is not None:
            self._given[client] = self._given.get(client, 0) + 1
        return task

    def _draw(
        self, begun: Mapping[int, Task], taken: Mapping[int, int]
    ) -> tuple[int | None, float | None]:
        """Draw one of the clients that may be asked now, every one as likely.

        Returns:
            The client; or None, and the first time at which one may be asked, if ever.
        """
        busy = {task.client for task in self._flight}

        def may(client: int) -> bool:
            if client in busy or client in begun:
                return False
            often = max(self._given.get(client, 0), taken.get(client, 0))
            return self._quota is None or often < self._quota

        self._draws += 1
        rng = data_rng(self._seed, "buffer", self._draws)
        for client in rng.integers(self._population, size=_TRIES).tolist():
            if may(client) and self._clock.is_there(client, self.now):
                return client, None
        free = [client for client in range(self._population) if may(client)]
        here = [client for client in free if self._clock.is_there(client, self.now)]
        if here:
            return int(here[int(rng.integers(len(here)))]), None
        times = (self._clock.there_from(client, self.now) for client in free)
        return None, min(times, default=None)
