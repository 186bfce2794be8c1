"""Signs of life, in a thread of their own: work in the worker never makes a node look dead."""

from __future__ import annotations

import threading
from typing import Final

from client.fleet.pacing import Backoff, jittered
from client.fleet.protocol import FleetClient, RunOver
from client.fleet.transport import Connection
from shared.errors import AccessDenied, FedSLMError

# The server forgets a node after two intervals without a sign; a jittered share of one stays below.
_SHARE: Final = 0.75
_FIRST_RETRY: Final = 1.0


class Heart:
    """Beats while it runs.

    Args:
        connection: its own; nobody else uses it.
        node_id: the node's number.
        seconds: the interval that the server was told.
    """

    def __init__(self, connection: Connection, node_id: int, *, seconds: float) -> None:
        self._connection = connection
        self._client = FleetClient(connection)
        self._node_id = node_id
        self._seconds = seconds
        self._stop = threading.Event()
        self._now = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Beat now, because the server may have missed some."""
        self._now.set()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._now.set()
        self._connection.abort()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        """Beat until stopped, or until the server does not know the node any more."""
        retry = Backoff(first=_FIRST_RETRY, longest=self._seconds * _SHARE)
        wait = jittered(self._seconds * _SHARE)
        while not self._stop.is_set():
            self._now.wait(wait)
            self._now.clear()
            if self._stop.is_set():
                return
            try:
                known = self._client.heartbeat(self._node_id, heartbeat_seconds=self._seconds)
            except (AccessDenied, RunOver):
                known = False
            except FedSLMError:
                wait = retry.pause()
                continue
            if not known:
                self.lost.set()
                return
            retry.reset()
            wait = jittered(self._seconds * _SHARE)
