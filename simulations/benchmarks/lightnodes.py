"""Many nodes in one process, for load and faults: they speak the protocol and train nothing.

A light node does what :mod:`client.fleet.node` does on the wire, with the same calls, and answers
with a small constant update. It has no worker, no policy and no ledger: what is measured with it is
the server. One thread a node.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from client.fleet.identity import NodeIdentity, ServerClock
from client.fleet.limits import DEFAULT_LIMITS
from client.fleet.messages import Question, answer, content_of
from client.fleet.objects import MESSAGE, collect, under
from client.fleet.pacing import jittered
from client.fleet.protocol import FleetClient, NotYet, RunOver
from client.fleet.records import Record, decode, encode
from client.fleet.transport import Connection, Endpoint
from server.fleetdb import FleetDatabase
from shared.errors import AccessDenied, FedSLMError, ServerUnreachable
from shared.lora import Vector

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from client.fleet.objects import Tree
    from server.home import ServerHome

Habit = Literal["answer", "vanish", "twice", "late"]
Habits = Callable[[int, Question], Habit]

HEARTBEAT_SECONDS: Final = 10.0
_BEAT_SECONDS: Final = 6.0
_RETRY_SECONDS: Final = 1.0
_NOT_YET_SECONDS: Final = 0.1
_HEADER: Final = "fedslm"
_ADAPTER: Final = "adapter"
_VECTOR: Final = "vector"
_SIZE_OF_STEP: Final = 1e-3


def always(client: int, question: Question) -> Habit:
    """Answer everything."""
    del client, question
    return "answer"


@dataclass(slots=True)
class Tally:
    """What the nodes of a pool did, counted.

    Attributes:
        counts: of each event.
        errors: of each code of an error that a call ended with.
    """

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, event: str) -> None:
        """Count an event."""
        with self.lock:
            self.counts[event] += 1

    def error(self, code: str) -> None:
        """Count an error."""
        with self.lock:
            self.errors[code] += 1


class LightNode:
    """One node.

    Args:
        endpoint: the server's front.
        key: enrolled.
        client: which client it speaks for; only its habits depend on it.
        stage: what the run's privacy mode calls an update: "plain", "clipped" or "noised".
        habits: what it does with a message.
        tally: where its deeds are counted.
        poll_seconds: pause between two questions for work.
        stop: ends it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: EllipticCurvePrivateKey,
        *,
        client: int,
        stage: str,
        habits: Habits,
        tally: Tally,
        poll_seconds: float,
        stop: threading.Event,
    ) -> None:
        self._identity = NodeIdentity(key)
        self._clock = ServerClock()
        self._connection = Connection(endpoint, self._identity, self._clock)
        self._fleet = FleetClient(self._connection)
        self._client = client
        self._stage = stage
        self._habits = habits
        self._tally = tally
        self._poll = poll_seconds
        self._stop = stop
        self._node_id: int | None = None
        self._beaten = float("-inf")

    def run(self) -> None:
        """Take part until stopped."""
        # A fleet does not start in step.
        self._stop.wait(jittered(self._poll / 2))
        while not self._stop.is_set():
            try:
                pause = self._turn()
            except AccessDenied as error:
                self._node_id = None
                self._tally.error(error.code)
                pause = _RETRY_SECONDS
            except RunOver:
                self._tally.add("run-over")
                pause = 0.0
            except FedSLMError as error:
                self._tally.error(error.code)
                pause = _RETRY_SECONDS
            self._stop.wait(jittered(pause))
        if self._node_id is not None:
            with suppress(FedSLMError, RunOver):
                self._fleet.deactivate(self._node_id)
        self._connection.close()

    def _turn(self) -> float:
        """Do one thing; returns how long to wait then."""
        if self._node_id is None:
            self._node_id = self._fleet.activate(
                self._identity.public_key, heartbeat_seconds=HEARTBEAT_SECONDS
            )
            self._beaten = time.monotonic()
            self._tally.add("joined")
        node_id = self._node_id
        if time.monotonic() - self._beaten > _BEAT_SECONDS:
            if not self._fleet.heartbeat(node_id, heartbeat_seconds=HEARTBEAT_SECONDS):
                self._node_id = None
                return 0.0
            self._beaten = time.monotonic()
        question = self._fleet.pull_message(node_id)
        if question is None:
            return self._poll
        self._tally.add("message")
        self._do(node_id, question)
        return 0.0

    def _do(self, node_id: int, question: Question) -> None:
        """Do with a message what the node's habit is."""
        habit = self._habits(self._client, question)
        if habit == "vanish":
            self._tally.add("vanished")
            self._connection.close()
            return
        update = self._update(node_id, question)
        if habit == "late":
            self._stop.wait(max(0.0, question.expires - self._clock.now() + 0.5))
        self._send(node_id, question, encode(update))
        self._tally.add("late" if habit == "late" else "answered")
        if habit == "twice":
            second = {name: {_VECTOR: -one[_VECTOR]} for name, one in update.arrays.items()}
            again = Record(arrays=second, configs=update.configs, metrics={})
            self._send(node_id, question, encode(again))
            self._tally.add("answered-again")

    def _update(self, node_id: int, question: Question) -> Record:
        """Fetch an instruction and return what answers it."""

        def fetch(name: str) -> bytes:
            while True:
                try:
                    return self._fleet.pull_object(node_id, question, name)
                except NotYet:
                    if self._stop.wait(_NOT_YET_SECONDS):
                        raise RunOver from None

        tree = collect(question.message_id, MESSAGE, fetch, limits=DEFAULT_LIMITS)
        self._fleet.confirm(node_id, question)
        told = decode(under(tree, content_of(question, tree)))
        header = told.configs[_HEADER]
        size = told.arrays[_ADAPTER][_VECTOR].size
        vector: Vector = np.full(size, _SIZE_OF_STEP, dtype=np.float32)
        said: dict[str, Any] = {
            name: header[name] for name in ("protocol", "server-round", "config-digest")
        }
        return Record(
            arrays={_ADAPTER: {_VECTOR: vector}},
            configs={_HEADER: {**said, "stage": self._stage}},
            metrics={},
        )

    def _send(self, node_id: int, question: Question, content: Tree) -> None:
        """Send an answer, again and again while the server is away and somebody waits for it."""
        answered = answer(question, content, node_id=node_id, now=self._clock.now())
        contents = answered.tree.contents
        while True:
            try:
                upload = self._fleet.push_message(node_id, answered, seconds=0.0)
                for name in upload.wanted or contents:
                    self._fleet.push_object(node_id, question.run_id, upload, name, contents[name])
            except ServerUnreachable:
                if self._stop.wait(_RETRY_SECONDS) or question.expires <= self._clock.now():
                    raise
            else:
                return


@contextmanager
def light_nodes(
    home: ServerHome,
    count: int,
    *,
    stage: str = "clipped",
    habits: Habits = always,
    poll_seconds: float = 0.5,
    prefix: str = "light",
) -> Iterator[Tally]:
    """Enroll keys with a server of this machine and run a node for each, in this process.

    Args:
        home: the server's folder.
        count: nodes.
        stage: see :class:`LightNode`.
        habits: what a client does with a message; called in the nodes' threads.
        poll_seconds: pause between two questions for work.
        prefix: of the names.

    Yields:
        What they did so far.
    """
    keys = enroll_keys(home, [f"{prefix}-{number}" for number in range(count)])
    endpoint = Endpoint(host="localhost", port=home.config.fleet_port, ca=home.ca_certificate)
    stop, tally = threading.Event(), Tally()
    threads = [
        threading.Thread(
            target=LightNode(
                endpoint,
                key,
                client=client,
                stage=stage,
                habits=habits,
                tally=tally,
                poll_seconds=poll_seconds,
                stop=stop,
            ).run,
            daemon=True,
        )
        for client, key in keys
    ]
    for thread in threads:
        thread.start()
    try:
        yield tally
    finally:
        stop.set()
        for thread in threads:
            thread.join(20.0)


def enroll_keys(
    home: ServerHome, names: Sequence[str]
) -> list[tuple[int, EllipticCurvePrivateKey]]:
    """Enroll a new key for each name; returns client and key."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found = []
    with FleetDatabase(home.fleet_database) as database:
        for name in names:
            key = generate_private_key(SECP384R1())
            public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            token = database.new_token(name, valid_seconds=60.0)
            redeemed = database.redeem(token, public)
            found.append((redeemed.client_index or 0, key))
    return found
