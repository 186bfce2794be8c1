"""Sending to many nodes and taking replies as they come, with a deadline.

Flower's ``send_and_receive`` polls every three seconds in a deployment and ``sample_nodes`` may
wait for ever; this loop pushes once and pulls with a short, growing pause.

Each reply is pulled alone. What a node sends is put together inside Flower's ``pull_messages``,
which forgets the whole batch at the first piece that cannot be read, waits for pieces that were
announced and never came, and takes whom a reply answers from the reply itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

TRAIN = MessageType.TRAIN
MEASURE = MessageType.EVALUATE
INTRODUCE = MessageType.QUERY

logger = logging.getLogger("fedslm.server")

_SHORTEST_PAUSE = 0.01
_LONGEST_PAUSE = 0.5
_GATHER_SECONDS = 60.0
_PATIENCE_SECONDS = 2.0


class Messenger:
    """Exchanges one message with each of many nodes.

    Args:
        grid: Flower's connection to the nodes.
        deadline_seconds: how long replies are waited for.
    """

    def __init__(self, grid: Grid, *, deadline_seconds: float) -> None:
        self._grid = grid
        self._deadline = deadline_seconds

    def nodes(self) -> list[int]:
        """Return the ids of the nodes that are connected now."""
        return sorted(self._grid.get_node_ids())

    def gather(self, count: int) -> list[int]:
        """Wait until so many nodes are connected, at most a minute, and return those that are."""
        end = time.monotonic() + min(self._deadline, _GATHER_SECONDS)
        while len(found := self.nodes()) < count and time.monotonic() < end:
            time.sleep(_LONGEST_PAUSE)
        return found

    @property
    def deadline_seconds(self) -> float:
        """How long a reply is waited for."""
        return self._deadline

    def send(self, kind: str, contents: Mapping[int, RecordDict], *, group: str) -> dict[str, int]:
        """Send each node its content, and wait for nothing.

        Args:
            kind: as :meth:`exchange`.
            contents: as there.
            group: as there.

        Returns:
            The node of each message that was taken, by the message's id.
        """
        # A list: Flower's own grid walks through the messages twice.
        messages = [
            Message(content, node, kind, ttl=self._deadline, group_id=group)
            for node, content in contents.items()
        ]
        taken = set(self._grid.push_messages(messages))
        # A grid names each message as it takes it.
        return {
            message.metadata.message_id: message.metadata.dst_node_id
            for message in messages
            if message.metadata.message_id in taken
        }

    def pulls(self) -> Pulls:
        """Return what pulls replies, each alone."""
        return Pulls(self._grid)

    def exchange(
        self, kind: str, contents: Mapping[int, RecordDict], *, group: str
    ) -> Iterator[tuple[int, RecordDict | None]]:
        """Send each node its content and yield replies as they arrive.

        Args:
            kind: ``TRAIN``, ``MEASURE`` or ``INTRODUCE``.
            contents: what to send, by node id.
            group: name of the exchange, for logs ("12").

        Yields:
            Node id and content; None where Flower reports an error for the node. A node that does
            not answer before the deadline is not yielded, and none is yielded twice. Whose reply
            it is follows from the message it answers, not from what the reply says.
        """
        waiting = self.send(kind, contents, group=group)
        end = time.monotonic() + self._deadline
        pulls = self.pulls()
        pause = _SHORTEST_PAUSE
        while waiting and time.monotonic() < end:
            began, some = time.monotonic(), False
            for identifier, content in pulls.each(list(waiting), end=end):
                some = True
                yield waiting.pop(identifier), content
            pause = _SHORTEST_PAUSE if some else min(pause * 1.5, _LONGEST_PAUSE)
            if not some:
                # At most half of the time is spent asking.
                asking = min(time.monotonic() - began, _PATIENCE_SECONDS)
                time.sleep(min(max(pause, asking), max(0.0, end - time.monotonic())))


class Pulls:
    """Pulls the replies of one exchange, each alone, and waits for none of them for long.

    Args:
        grid: Flower's connection to the nodes.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._inline = bool(getattr(grid, "nodes_are_clients", False))
        self._under_way: dict[str, _Pull] = {}

    def each(
        self, identifiers: Iterable[str], *, end: float
    ) -> Iterator[tuple[str, RecordDict | None]]:
        """Yield the replies that are there, by the message that they were pulled for.

        A reply that cannot be read is yielded without any record, which no codec takes.

        Args:
            identifiers: of the messages that were not answered yet.
            end: when to stop, by the monotonic clock.
        """
        for identifier in identifiers:
            if time.monotonic() >= end:
                return
            pull = self._under_way.pop(identifier, None)
            if pull is None:
                pull = _Pull(self._grid, identifier)
                pull.begin(inline=self._inline)
                pull.done.wait(min(_PATIENCE_SECONDS, max(0.0, end - time.monotonic())))
            if not pull.done.is_set():
                self._under_way[identifier] = pull
            elif (reply := pull.reply()) is not None:
                yield identifier, reply.content if reply.has_content() else None


class _Pull:
    """One request for one reply, in a thread of its own: its pieces may never come."""

    def __init__(self, grid: Grid, identifier: str) -> None:
        self._grid = grid
        self._identifier = identifier
        self._found: list[Message] = []
        self._error: Exception | None = None
        self.done = threading.Event()

    def begin(self, *, inline: bool) -> None:
        """Start; a grid that computes the reply when it is asked does so in this thread."""
        if inline:
            self._found = list(self._grid.pull_messages([self._identifier]))
            self.done.set()
        else:
            threading.Thread(target=self._pull, daemon=True).start()

    def reply(self) -> Message | None:
        """Return the reply, or None if there is none yet; only of a pull that is done.

        Raises:
            Exception: whatever the connection to the SuperLink raised.
        """
        if self._error is not None:
            from server.flowermessages import is_unreadable

            if not is_unreadable(self._error):
                raise self._error
            logger.warning("a reply could not be read: %s", type(self._error).__name__)
            return _unreadable()
        for found in self._found:
            if found.metadata.reply_to_message_id == self._identifier:
                return found
        if self._found:
            logger.warning("a reply says that it answers another message")
            return _unreadable()
        return None

    def _pull(self) -> None:
        """Pull, and keep what came of it."""
        try:
            self._found = list(self._grid.pull_messages([self._identifier]))
        except Exception as error:  # noqa: BLE001 - raised again by whoever reads the reply
            self._error = error
        self.done.set()


def _unreadable() -> Message:
    """Return a reply without any record."""
    return Message(RecordDict(), 1, TRAIN)
