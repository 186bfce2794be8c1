"""What a run on a fleet knows about its nodes: the enrolments, read from the fleet's database."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from server.fleetdb import FleetDatabase

logger = logging.getLogger("fedslm.server")


class FleetDirectory:
    """Maps Flower's nodes to clients by enrolment, and notes what they do wrong.

    Args:
        database: the fleet's; its node ids were learnt by the front from Flower's answers.
    """

    def __init__(self, database: FleetDatabase) -> None:
        self._database = database
        self._strangers: set[int] = set()

    def clients_of(self, nodes: Sequence[int]) -> Mapping[int, int]:
        """Return client by node; unknown and revoked nodes are left out."""
        found: dict[int, int] = {}
        taken: set[int] = set()
        for node in nodes:
            client = self._database.client_of(node)
            if client is None:
                self._wonder(node)
            elif client not in taken:
                taken.add(client)
                found[node] = client
        return found

    def flag(self, client: int, code: str) -> None:
        """Note against the enrolment in force that it sent something it should not have."""
        for entry in self._database.nodes():
            if entry.client_index == client and entry.revoked_at is None:
                self._database.flag(entry.name, code)

    def _wonder(self, node: int) -> None:
        """Log a node that nobody enrolled, once."""
        if node not in self._strangers and len(self._strangers) < 1000:
            self._strangers.add(node)
            logger.warning("node %d is not enrolled, or was revoked, and is ignored", node)
