"""Messages that outlive the step they were sent in: who was asked what, and answers as they come.

A synchronous round has its messages to itself. In an asynchronous run a client may answer while the
server is some steps further, and nobody waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from server.messenger import TRAIN, Messenger, Pulls
from shared.wire import Records

logger = logging.getLogger("fedslm.server")

_SHORTEST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A client that is at work.

    Attributes:
        client: who.
        server_round: the step whose instruction it was given.
        ends: when it is given up, by the monotonic clock.
    """

    client: int
    server_round: int
    ends: float


class Flight:
    """What is under way in one attempt at an asynchronous run.

    What an attempt that was killed had under way is lost: its answers belong to that attempt's run
    of Flower, and nobody can ask for them any more.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Asked] = {}
        self._pulls: Pulls | None = None

    def __len__(self) -> int:
        """Return how many clients are at work."""
        return len(self._waiting)

    @property
    def clients(self) -> frozenset[int]:
        """Who is at work."""
        return frozenset(asked.client for asked in self._waiting.values())

    @property
    def rounds(self) -> frozenset[int]:
        """The steps whose instructions are at work."""
        return frozenset(asked.server_round for asked in self._waiting.values())

    def ask(
        self,
        messenger: Messenger,
        nodes: Mapping[int, int],
        contents: Mapping[int, Records],
        *,
        server_round: int,
    ) -> None:
        """Send some clients their work.

        Args:
            messenger: the way to the nodes.
            nodes: client by node.
            contents: what each node is sent.
            server_round: the step.
        """
        if self._pulls is None:
            self._pulls = messenger.pulls()
        ends = time.monotonic() + messenger.deadline_seconds
        sent = messenger.send(TRAIN, contents, group=str(server_round))
        for identifier, node in sent.items():
            self._waiting[identifier] = Asked(
                client=nodes[node], server_round=server_round, ends=ends
            )

    def answers(self) -> Iterator[tuple[Asked, Records | None]]:
        """Yield answers as they come, until nobody is at work; it may be left at any time.

        Yields:
            Who answers what, and the content; None where Flower reports an error for the node. A
            client that does not answer before its deadline is given up and not yielded.
        """
        pause = _SHORTEST_PAUSE
        while self._waiting and self._pulls is not None:
            some = False
            self._give_up()
            end = max((asked.ends for asked in self._waiting.values()), default=0.0)
            for identifier, content in self._pulls.each(list(self._waiting), end=end):
                some = True
                yield self._waiting.pop(identifier), content
            pause = _SHORTEST_PAUSE if some else min(pause * 1.5, _LONGEST_PAUSE)
            if not some:
                time.sleep(pause)

    def _give_up(self) -> None:
        """Forget whoever is too late."""
        now = time.monotonic()
        late = [name for name, asked in self._waiting.items() if asked.ends <= now]
        for name in late:
            asked = self._waiting.pop(name)
            logger.warning(
                "step %d: client %d did not answer in time", asked.server_round, asked.client
            )
