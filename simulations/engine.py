"""The in-process engine: a Flower Grid that calls the ClientApp directly.

No Ray, no daemon, one shared frozen base: ``push_messages`` queues, ``pull_messages`` runs the next
queued client and returns its reply, so that one update is on its way at a time and a cohort is
trained in the order it was drawn. Before each call the ClientApp is shown the queue, so that it may
train several of the clients that come next in one pass over the base. The ServerApp and the
ClientApp are the ones a fleet runs.

Flower's ``Message`` asks a process-wide task identity that only its own launchers set; this module
is the one place that sets it (tests/contract/test_flower_surface.py pins the names).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from shared.errors import ProtocolError


@runtime_checkable
class Foresighted(Protocol):
    """A ClientApp that wants to know who is called next."""

    def expect(
        self, message: Message, context: Context, coming: Iterable[tuple[int, Message]]
    ) -> None:
        """Be told which message is about to come, and what is queued after it."""


_SERVER_NODE = 1
_RUN = 1


class InProcessGrid(Grid):
    """A Flower Grid whose nodes are the clients of one process.

    Node ``i + 1`` is client ``i``. Contexts are made when a client is called. What a client leaves
    in its state is kept for its next message, as Flower does, and dropped once it leaves nothing:
    memory grows with the clients that are in the middle of something, not with the population.

    Args:
        app: the ClientApp.
        population: number of clients.
    """

    nodes_are_clients = True

    def __init__(self, app: ClientApp, population: int) -> None:
        self._app = app
        self._population = population
        self._queue: deque[Message] = deque()
        self._ids = itertools.count(1)
        self._states: dict[int, RecordDict] = {}
        TaskIdentity.run_id = _RUN
        TaskIdentity.node_id = _SERVER_NODE
        TaskIdentity.task_id = 1

    def set_run(self, run: Run) -> None:
        """Refuse: the in-process run is fixed."""
        msg = "The in-process grid has one run, fixed when it is made."
        raise ProtocolError(msg)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return Run.create_empty(run_id=_RUN)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; Flower's own constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """Return the node ids, one per client."""
        return range(1, self._population + 1)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages and return their ids."""
        ids = []
        for message in messages:
            identifier = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = identifier
            self._queue.append(message)
            ids.append(identifier)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the next queued client that is asked for and return its reply."""
        wanted = set(message_ids)
        while self._queue:
            message = self._queue.popleft()
            if message.metadata.message_id in wanted:
                return [self._call(message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Run every message and return all replies; ``timeout`` cannot be exceeded by waiting."""
        del timeout
        waiting = self.push_messages(messages)
        return [reply for _ in waiting for reply in self.pull_messages(waiting)]

    def _call(self, message: Message) -> Message:
        """Call the ClientApp as the node the message is for."""
        node = message.metadata.dst_node_id
        context = Context(
            run_id=_RUN,
            node_id=node,
            node_config={"partition-id": node - 1, "num-partitions": self._population},
            state=self._states.pop(node, RecordDict()),
            run_config={},
        )
        if isinstance(self._app, Foresighted):
            queued = ((m.metadata.dst_node_id - 1, m) for m in self._queue)
            self._app.expect(message, context, queued)
        reply = self._app(message, context)
        if context.state:
            self._states[node] = context.state
        return reply


def run_in_process(server: ServerApp, client: ClientApp, *, population: int) -> None:
    """Run a ServerApp against a ClientApp in this process.

    Args:
        server: the ServerApp.
        client: the ClientApp that speaks for every client.
        population: number of clients.
    """
    grid = InProcessGrid(client, population)
    context = Context(
        run_id=_RUN, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config={}
    )
    server(grid=grid, context=context)
