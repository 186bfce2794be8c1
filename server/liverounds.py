"""Asynchronous rounds on real devices: the server steps when enough answers are in (FedBuff).

Before a step the server asks clients that are connected and idle, as many as keep
``buffer.concurrency`` at work, and charges them in one entry. It then takes answers, of this step
and of earlier ones, until ``buffer.size`` are in; whoever is still at work goes on.

Guarantee:
    As :mod:`server.buffered`: in mode ``example`` each update was noised on its device under its
    own charge, and buffer, weights and mean are post-processing. A step is charged once, before its
    messages leave, and asked once. What has arrived is in the checkpoint before the next answer is
    taken, so that a server that is killed counts it later, in another step, and asks nobody again.
    When a device answers may depend on its data; who is in a buffer follows from that, which no
    event pays for. A device therefore takes part only if its owner's policy says ``asynchronous``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.aggregation import Aggregate
from server.buffered import Task
from server.collect import OnAnswer, Traffic
from server.flight import Flight
from server.messenger import Messenger
from server.reading import UpdateReader
from server.setup import RunSetup
from server.updatebuffer import UpdateBuffer
from shared.errors import NotResumable
from shared.lora import Vector
from shared.seeding import data_rng
from shared.wire import Records, payload_bytes

_LIVE = "live"

Place = tuple[int, int]
"""A client and the step that it was asked in."""


class LiveRounds:
    """Keeps what an asynchronous run on real devices remembers between its steps.

    Args:
        setup: what the run is, with a buffer and without a clock.
        size: number of parameters.
    """

    def __init__(self, setup: RunSetup, *, size: int) -> None:
        plan, buffer = setup.plan, setup.config.buffer
        self._seed = setup.config.run.seed
        self._quota = plan.max_participations if plan.mode == "example" else None
        self._updates = UpdateBuffer(buffer, size=size)
        self._flight = Flight()
        self._readers: dict[int, UpdateReader] = {}
        self._arrived: list[Place] = []
        self._concurrency = buffer.concurrency or 1
        self._least = max(1, math.ceil(setup.config.server.quorum * (buffer.size or 1)))
        self._age = 0.0
        self.size = buffer.size or 1

    def begin(
        self, server_round: int, taken: Mapping[int, int], there: Callable[[], Sequence[int]]
    ) -> list[int]:
        """Draw who begins before a step, of those who are connected and idle; to be charged.

        Args:
            server_round: the step.
            taken: participations that each client was charged for.
            there: says who is connected.
        """
        quota = self._quota
        busy = self._flight.clients | {c for c, number in self._arrived if number == server_round}
        free = [
            client
            for client in there()
            if client not in busy and (quota is None or taken.get(client, 0) < quota)
        ]
        count = min(len(free), self._concurrency - len(self._flight))
        if count <= 0:
            return []
        rng = data_rng(self._seed, "buffer", server_round)
        return sorted(int(c) for c in rng.choice(sorted(free), size=count, replace=False))

    def step(
        self,
        messenger: Messenger,
        nodes: Mapping[int, int],
        reader: UpdateReader,
        *,
        keep: Callable[[], None],
        on_answer: OnAnswer,
    ) -> tuple[Aggregate | None, str | None, Traffic]:
        """Ask who begins, take answers until the buffer is full, and release their mean.

        A client that answers with a failure fills its place with nothing; one that never answers is
        given up at ``server.deadline_seconds``. Below the quorum nothing is released, and what has
        arrived waits for the next step.

        Args:
            messenger: the way to the nodes.
            nodes: client by node, of those who begin and are connected.
            reader: of this step's instruction.
            keep: makes what has arrived durable.
            on_answer: is told after each answer.

        Returns:
            The mean, why there is none, and the traffic.
        """
        server_round = reader.instruction.server_round
        contents = reader.contents(nodes)
        self._readers[server_round] = reader
        self._flight.ask(messenger, nodes, contents, server_round=server_round)
        down = max((payload_bytes(content) for content in contents.values()), default=0)
        failed, traffic = 0, Traffic(down=down)
        answers = self._flight.answers()
        while len(self._arrived) + failed < self.size:
            found = next(answers, None)
            if found is None:
                break
            place, reply = (found[0].client, found[0].server_round), found[1]
            if reply is None or not self._take(place, reply):
                failed += 1
                continue
            up, ranked = payload_bytes(reply), reader.ranked
            by_rank = {} if ranked is None else ranked.bytes_with(place[0], up)
            traffic = traffic.most(Traffic(up=up, by_rank=by_rank))
            self._arrived.append(place)
            on_answer(len(self._arrived))
            if len(self._arrived) + failed < self.size:
                keep()
        self._forget_readers()
        return *self._release(server_round), traffic

    def notes(self) -> dict[str, float | int]:
        """Return what a round's metrics line says of age and who is at work."""
        return {"staleness": self._age, "in_flight": len(self._flight)}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep beside the tensors: the order of arrival."""
        return {_LIVE: [list(place) for place in self._arrived]}

    def tensors(self) -> dict[str, Vector]:
        """Return the updates that wait, by name."""
        return self._updates.tensors()

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Vector]) -> None:
        """Take up a checkpoint.

        Raises:
            NotResumable: if it is damaged, or not of an asynchronous run on devices.
        """
        self._updates.restore(tensors)
        try:
            self._arrived = [(int(client), int(number)) for client, number in state[_LIVE]]
        except (KeyError, TypeError, ValueError):
            self._arrived = []
            if state or tensors:
                raise _damaged() from None
        if {f"{client}.{number}" for client, number in self._arrived} != set(tensors):
            raise _damaged()

    def _take(self, place: Place, reply: Records) -> bool:
        """Read an answer into the buffer; tell whether there was one."""
        client, number = place
        holder = self._updates.holder(number)
        return self._readers[number].take(client, reply, holder, holder.of)

    def _release(self, server_round: int) -> tuple[Aggregate | None, str | None]:
        """Return the mean of what has arrived first, or why there is none."""
        self._age = 0.0
        found = len(self._arrived)
        if found < self._least:
            return None, f"{found} of {self.size} answers came, needed {self._least}."
        places, self._arrived = self._arrived[: self.size], self._arrived[self.size :]
        counted = [
            Task(ends=0.0, client=client, server_round=number, answers=True)
            for client, number in places
        ]
        aggregate, self._age = self._updates.release(counted, server_round=server_round)
        return aggregate, None

    def _forget_readers(self) -> None:
        """Forget the instructions that nobody works on any more."""
        at_work = self._flight.rounds
        self._readers = {n: reader for n, reader in self._readers.items() if n in at_work}


def _damaged() -> NotResumable:
    """Return the error of a checkpoint whose buffer is not what it must be."""
    msg = "The checkpoint says nothing, or nothing right, of the answers that had arrived."
    return NotResumable(msg, hint="Start a new run in another folder.")
