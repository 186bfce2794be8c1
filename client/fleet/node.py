"""The node: joins, waits for messages, has them answered, and never gives up.

Imports neither Flower nor torch nor numpy. See docs/deploy/node.md for what it does when.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from client.fleet.errand import Errands, Owner
from client.fleet.heart import Heart
from client.fleet.identity import NodeIdentity, ServerClock
from client.fleet.pacing import Backoff, Pace, jittered
from client.fleet.protocol import FleetClient, RunOver
from client.fleet.settings import NodeSettings, settings_of
from client.fleet.status import Board, Event
from client.fleet.transport import Connection
from shared.bundle import BUNDLE_DIGEST
from shared.errors import (
    AccessDenied,
    CertificateInvalid,
    FedSLMError,
    SchemaMismatch,
    ServerUnreachable,
)

if TYPE_CHECKING:
    from client.home import DeviceHome

_PAUSED_SECONDS: Final = 10.0
_RUN_WATCH_SECONDS: Final = 30.0
_GOODBYE_SECONDS: Final = 3.0


class Node:
    """One node, for one call of :meth:`run`.

    Args:
        settings: where the server is, and everything else from outside.
        stop: set from anywhere, also from a signal handler, to end the node.
        conditions: reasons not to work now, in plain words.
        on_event: called with each event; from the node's own thread.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        stop: threading.Event,
        conditions: Callable[[], Sequence[str]],
        on_event: Callable[[Event], None],
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._identity = NodeIdentity.load(settings.key)
        self._clock = ServerClock()
        self._connection = Connection(settings.endpoint, self._identity, self._clock)
        self._client = FleetClient(self._connection, limits=settings.limits)
        self._board = Board(settings.status, on_event)
        self._owner = Owner(settings.policy, conditions)
        self._pace = Pace(idle_seconds=settings.poll_seconds)
        self._errands = Errands(
            settings,
            client=self._client,
            clock=self._clock,
            owner=self._owner,
            board=self._board,
            stop=stop,
        )
        self._node_id: int | None = None
        self._heart: Heart | None = None
        self._watched = time.monotonic()
        self._reason = ""
        self._away = Backoff(first=0.5, longest=20.0)
        self._denied = Backoff(first=5.0, longest=300.0, factor=1.5)

    def run(self) -> None:
        """Work until told to stop, or until the owner took the device out of the fleet."""
        self._board.note("starting", state="starting")
        over = threading.Event()
        watcher = threading.Thread(target=self._watch_stop, args=(over,), daemon=True)
        watcher.start()
        try:
            while not (self._stop.is_set() or self._settings.left()):
                self._turn()
        finally:
            over.set()
            watcher.join()
            self._errands.child.end()
            self._leave()
            self._connection.close()
            self._board.keep(worker=None, reasons=None)
            self._board.note("stopped", state="stopped")

    def _turn(self) -> None:
        """Do one thing; what goes wrong is waited out."""
        try:
            reasons = self._owner.reasons()
            if reasons:
                self._rest(reasons)
            else:
                self._step()
                self._back()
        except AccessDenied as error:
            self._lose()
            self._trouble("denied", error, self._denied)
        except (ServerUnreachable, CertificateInvalid) as error:
            self._trouble("away", error, self._away)
        except SchemaMismatch as error:
            if not self._stop.is_set():
                self._board.note("malformed", code=error.code, reason=error.message)
            self._owner.wait(self._stop, self._away.pause())

    def _step(self) -> None:
        """Join if need be, and look for a message."""
        if self._heart is not None and self._heart.lost.is_set():
            self._lose()
        if self._node_id is None:
            self._join()
        node_id = self._node_id
        if node_id is None:
            return
        question = self._client.pull_message(node_id)
        if question is not None:
            self._back()
            self._errands.handle(node_id, question)
            self._pace.message()
            self._board.keep(worker=self._worker())
            self._board.enter("idle")
            return
        self._tidy(node_id)
        self._owner.wait(self._stop, self._pace.pause(active=self._errands.run_id is not None))

    def _join(self) -> None:
        """Ask the server in, and start beating."""
        seconds = self._settings.heartbeat_seconds
        if self._board.state not in {"away", "denied"}:
            self._board.enter("joining")
        self._node_id = self._client.activate(self._identity.public_key, heartbeat_seconds=seconds)
        own = Connection(self._settings.endpoint, self._identity, self._clock)
        self._heart = Heart(own, self._node_id, seconds=seconds)
        self._board.keep(node_id=str(self._node_id), clock_offset=self._offset())
        self._board.note("joined", state="idle", node_id=str(self._node_id))

    def _rest(self, reasons: Sequence[str]) -> None:
        """Be away while the owner's conditions do not hold, so that nobody waits for us."""
        if self._board.state != "paused":
            self._errands.child.end()
            self._leave()
            self._board.keep(reasons=list(reasons), worker=None)
            self._board.note("paused", state="paused", reasons=list(reasons))
        self._owner.wait(
            self._stop, jittered(min(_PAUSED_SECONDS, 2 * self._settings.poll_seconds))
        )
        if not self._owner.reasons():
            self._board.keep(reasons=None)
            self._board.note("resumed", state="joining")

    def _trouble(self, state: str, error: FedSLMError, backoff: Backoff) -> None:
        """Note why the server is away or refuses us, once for each reason, and wait."""
        if self._stop.is_set():
            return
        if (self._board.state, self._reason) != (state, error.code):
            self._reason = error.code
            self._board.keep(error={"code": error.code, "message": str(error)})
            self._board.note(
                state, state="denied" if state == "denied" else "away", code=error.code
            )
        self._owner.wait(self._stop, backoff.pause())

    def _back(self) -> None:
        """Note that the server is there."""
        self._away.reset()
        self._denied.reset()
        if self._board.state in {"away", "denied"}:
            self._board.keep(error=None)
            self._board.note("back", state="idle")
            if self._heart is not None:
                self._heart.beat()

    def _tidy(self, node_id: int) -> None:
        """Let go of what has not been used for long."""
        now = time.monotonic()
        child = self._errands.child
        if child.pid is not None and now - child.last_used > self._settings.idle_seconds:
            child.end()
            self._board.keep(worker=None)
            self._board.note("worker-released")
        run_id = self._errands.run_id
        if run_id is not None and now - self._watched > _RUN_WATCH_SECONDS:
            self._watched = now
            try:
                self._client.run(node_id, run_id)
            except RunOver:
                self._errands.forget(run_id)

    def _worker(self) -> dict[str, object] | None:
        """Return what the worker holds."""
        child = self._errands.child
        resident = child.resident_mb()
        if resident is None:
            return None
        return {"pid": child.pid, "resident_mb": round(resident, 1)}

    def _offset(self) -> float | None:
        """Return how far the device's clock is behind the server's, if it is wrong."""
        return round(self._clock.offset, 1) or None

    def _lose(self) -> None:
        """Forget a membership that the server does not know any more."""
        heart, self._heart, self._node_id = self._heart, None, None
        if heart is not None:
            heart.stop()

    def _leave(self) -> None:
        """Tell the server that this node is not there, if it can be told quickly."""
        node_id = self._node_id
        self._lose()
        if node_id is None:
            return
        with suppress(FedSLMError, RunOver):
            connection = Connection(
                self._settings.endpoint,
                self._identity,
                self._clock,
                read_seconds=_GOODBYE_SECONDS,
            )
            try:
                FleetClient(connection).deactivate(node_id)
            finally:
                connection.close()

    def _watch_stop(self, over: threading.Event) -> None:
        """End a request that is under way when the node is told to stop."""
        while not over.is_set():
            if self._stop.wait(1.0):
                self._connection.abort()
                return


def run_node(
    home: DeviceHome,
    *,
    stop: threading.Event,
    conditions: Callable[[], Sequence[str]],
    on_event: Callable[[Event], None],
    base: str | None = None,
    bundles: frozenset[str] | None = frozenset({BUNDLE_DIGEST}),
) -> None:
    """Run the node of an enrolled device until it is told to stop or to leave.

    The folder is held while it runs. Nothing that the server does or fails to do ends the node.

    Args:
        home: the device's folder.
        stop: ends the node; a signal handler may set it.
        conditions: reasons not to work now, in plain words; asked once a second at most.
        on_event: called with each event, a small dictionary without private data.
        base: folder of the base model, in place of what ``node.toml`` says.
        bundles: SHA-256 of the app bundles whose runs are answered: by default that of fedslm's own
            runs; None for any. The node runs no bundle, only the installed client.

    Raises:
        AlreadyRunning: if a node runs from this folder.
        FleetError: if the device is not enrolled as a node, or its key may be read by others.
        CertificateInvalid: if its key or its authority's certificate cannot be read.
    """
    settings = settings_of(home, base=base, bundles=bundles)
    with home.running():
        Node(settings, stop=stop, conditions=conditions, on_event=on_event).run()
