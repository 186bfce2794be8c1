"""Sending to many nodes and taking replies as they come, with a deadline.

Flower's ``send_and_receive`` polls every three seconds in a deployment and ``sample_nodes`` may
wait for ever; this loop pushes once and pulls with a short, growing pause.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

TRAIN = MessageType.TRAIN
MEASURE = MessageType.EVALUATE
INTRODUCE = MessageType.QUERY

_SHORTEST_PAUSE = 0.01
_LONGEST_PAUSE = 0.5
_GATHER_SECONDS = 60.0


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
        # A list: Flower's own grid walks through the messages twice.
        messages = [
            Message(content, node, kind, ttl=self._deadline, group_id=group)
            for node, content in contents.items()
        ]
        taken = set(self._grid.push_messages(messages))
        # A grid names each message as it takes it.
        waiting = {
            message.metadata.message_id: message.metadata.dst_node_id
            for message in messages
            if message.metadata.message_id in taken
        }
        end = time.monotonic() + self._deadline
        pause = _SHORTEST_PAUSE
        while waiting and time.monotonic() < end:
            replies = list(self._grid.pull_messages(list(waiting)))
            pause = _SHORTEST_PAUSE if replies else min(pause * 1.5, _LONGEST_PAUSE)
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    yield node, reply.content if reply.has_content() else None
            if not replies:
                time.sleep(pause)
