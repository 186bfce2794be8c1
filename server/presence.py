"""Who is there: which node speaks for which client, and waiting until enough of them do.

Our own grid numbers nodes by client. In a fleet, enrolment knows, and who is there is looked up
again before every message. On any other grid each node is asked once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from flwr.app import RecordDict
from flwr.serverapp import Grid

from server.cohort import Population
from server.messenger import INTRODUCE, Messenger
from server.setup import NodeDirectory
from shared.errors import ProtocolError, QuorumNotReached
from shared.wire import Introduction, decode_introduction, encode_introduction

logger = logging.getLogger("fedslm.server")

_PRESENCE_SECONDS = 1.0


class Presence:
    """The clients of a run and the nodes that speak for them.

    Args:
        size: number of clients.
        directory: of a fleet; None on other grids.
    """

    def __init__(self, size: int, *, directory: NodeDirectory | None) -> None:
        self._size = size
        self._directory = directory
        self._messenger: Messenger | None = None
        self._population: Population | None = None

    @property
    def in_fleet(self) -> bool:
        """Tell whether enrolment says whom a node speaks for."""
        return self._directory is not None

    @property
    def population(self) -> Population:
        """The clients and their nodes, known after :meth:`connect`.

        Raises:
            QuorumNotReached: before it.
        """
        if self._population is None:
            msg = "The run is not connected to its nodes."
            raise QuorumNotReached(msg)
        return self._population

    def connect(self, grid: Grid, *, deadline_seconds: float) -> Messenger:
        """Learn which node speaks for which client.

        Args:
            grid: Flower's connection to the nodes.
            deadline_seconds: how long replies are waited for.

        Raises:
            QuorumNotReached: if no node introduces itself.
        """
        messenger = Messenger(grid, deadline_seconds=deadline_seconds)
        if self._directory is not None:
            self._messenger = messenger
            self._population = Population(size=self._size, nodes={})
        elif getattr(grid, "nodes_are_clients", False):
            self._population = Population(size=self._size)
        else:
            self._population = Population(size=self._size, nodes=self._introductions(messenger))
        return messenger

    def by_node(self, clients: Sequence[int]) -> dict[int, int]:
        """Return client by node, without the clients that nobody speaks for now."""
        self._meet()
        nodes = ((self.population.node(client), client) for client in clients)
        return {node: client for node, client in nodes if node is not None}

    def clients(self) -> list[int]:
        """Return the clients that somebody speaks for now."""
        return sorted(self.by_node(range(self._size)).values())

    def await_share(self, share: float) -> None:
        """Wait, in a fleet, until a share of all clients is there, however long that takes.

        Before a round's coins are tossed and before it is charged: nights, weekends and cut
        networks cost time, not budget. Whom the coins choose does not depend on it.
        """
        needed = max(1, math.ceil(share * self._size))
        told = -1
        while (there := self._meet()) < needed:
            if there != told:
                logger.info("waiting for nodes: %d of %d, needed %d", there, self._size, needed)
                told = there
            time.sleep(_PRESENCE_SECONDS)

    def flag(self, client: int, code: str) -> None:
        """Tell the fleet what a client sent, if there is a fleet."""
        if self._directory is not None:
            self._directory.flag(client, code)

    def _meet(self) -> int:
        """Look up again who is there, in a fleet; returns how many clients are."""
        if self._directory is None or self._messenger is None:
            return self._size
        found = self._directory.clients_of(self._messenger.nodes())
        nodes = {client: node for node, client in found.items() if 0 <= client < self._size}
        self._population = Population(size=self._size, nodes=nodes)
        return len(nodes)

    def _introductions(self, messenger: Messenger) -> dict[int, int]:
        """Ask each node which client it speaks for; returns node by client.

        Raises:
            QuorumNotReached: if none says.
        """
        hello = encode_introduction(Introduction(client=0))
        asked = dict.fromkeys(messenger.gather(self._size), hello)
        nodes: dict[int, int] = {}
        for node, content in messenger.exchange(INTRODUCE, asked, group="introduce"):
            client = self._introduced(node, content)
            if client is not None and client in nodes:
                logger.warning("node %d speaks for client %d, which is taken", node, client)
            elif client is not None:
                nodes[client] = node
        if not nodes:
            msg = "No node introduced itself."
            raise QuorumNotReached(msg, hint="Are the clients running?")
        return nodes

    def _introduced(self, node: int, content: RecordDict | None) -> int | None:
        """Return the client that a node speaks for; None if it does not say or does not exist."""
        if content is None:
            return None
        try:
            client = decode_introduction(content).client
        except ProtocolError as error:
            logger.warning("node %d did not introduce itself: %s", node, error.message)
            return None
        if not 0 <= client < self._size:
            logger.warning("node %d speaks for a client that does not exist", node)
            return None
        return client
