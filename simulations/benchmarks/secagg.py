"""What the protocol of secure aggregation itself costs, in processor seconds and bytes.

Every message travels as bytes, and packing and unpacking is counted on the side that does it. The
time is the processor's (``time.process_time``) in one thread, so a busy machine changes it little.
The clients' vectors are drawn outside the clock: encoding and noise are other modules' cost.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from shared.errors import SecureAggregationError
from shared.privacy.secagg import (
    Advertisement,
    ClientSession,
    Confirmation,
    Confirmations,
    Coordinator,
    Identity,
    KeyList,
    MaskedInput,
    Reveals,
    Roster,
    SecAggTerms,
    Shares,
    SharesForYou,
    SurvivorList,
)
from simulations.benchmarks.protocol import BenchResult, Check, Scalar

SUMMARY = "secure aggregation: processor time of server and clients, bytes up and down"

SERVER_LIMIT = 5.0
CLIENT_LIMIT = 2.0

_STREAM_REPEATS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One round to measure.

    Attributes:
        clients: n, all of them announced.
        dropouts: how many vanish after they have masked their vector, before it arrives.
        dimension: number of 32-bit words.
        honest_fraction: h.
        survivor_fraction: s.
        promised: whether the limits of time are promised for it.
    """

    clients: int
    dropouts: int
    dimension: int
    honest_fraction: float
    survivor_fraction: float
    promised: bool = False


FULL = (
    Case(
        clients=100,
        dropouts=5,
        dimension=1 << 20,
        honest_fraction=0.8,
        survivor_fraction=0.8,
        promised=True,
    ),
    Case(
        clients=100,
        dropouts=5,
        dimension=1 << 20,
        honest_fraction=0.67,
        survivor_fraction=0.75,
        promised=True,
    ),
    Case(
        clients=1000,
        dropouts=50,
        dimension=1000,
        honest_fraction=0.9,
        survivor_fraction=0.9,
    ),
)
QUICK = (
    Case(
        clients=10,
        dropouts=1,
        dimension=1 << 14,
        honest_fraction=0.8,
        survivor_fraction=0.8,
        promised=True,
    ),
    Case(
        clients=80,
        dropouts=4,
        dimension=1 << 10,
        honest_fraction=0.9,
        survivor_fraction=0.9,
    ),
)


def run(*, quick: bool) -> BenchResult:
    """Measure rounds of the protocol.

    Args:
        quick: smaller cohorts and vectors.

    Returns:
        A row per round and one for the key streams; checks on the promised rounds.

    Raises:
        SecureAggregationError: if a sum is not exact.
    """
    rows: list[dict[str, Scalar]] = []
    checks: list[Check] = []
    for case in QUICK if quick else FULL:
        row = _measure(case)
        rows.append(row)
        if case.promised:
            name = f"{case.clients} clients, degree {row['degree']}"
            server, client = float(str(row["server_s"])), float(str(row["client_max_s"]))
            checks += [
                Check(name=f"server, {name}", measured=server, limit=SERVER_LIMIT, unit="s"),
                Check(
                    name=f"slowest client, {name}", measured=client, limit=CLIENT_LIMIT, unit="s"
                ),
            ]
    words = 1 << (16 if quick else 20)
    parameters: dict[str, Scalar] = {
        "clock": "process time, one thread",
        "stream_words": words,
        "chacha20_ms": round(1e3 * _stream_seconds(words, aes=False), 3),
        "aes_256_ctr_ms": round(1e3 * _stream_seconds(words, aes=True), 3),
    }
    return BenchResult(name="secagg", parameters=parameters, rows=tuple(rows), checks=tuple(checks))


@dataclass(slots=True)
class _Meter:
    """Processor seconds of server and clients, and bytes in both directions."""

    server: float = 0.0
    clients: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    up: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    down: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def at_server(self) -> Iterator[None]:
        """Put what happens inside on the server's clock."""
        begun = time.process_time()
        yield
        self.server += time.process_time() - begun

    @contextmanager
    def at_client(self, client: int) -> Iterator[None]:
        """Put what happens inside on a client's clock."""
        begun = time.process_time()
        yield
        self.clients[client] += time.process_time() - begun


def _measure(case: Case) -> dict[str, Scalar]:
    """Play one round and return its row."""
    meter, play = _Meter(), _Round(case)
    play.advertise(meter)
    play.share(meter)
    play.mask(meter)
    play.confirm(meter)
    play.reveal(meter)
    bounds = play.coordinator.bounds
    spent = list(meter.clients.values())
    return {
        "clients": case.clients,
        "dropouts": case.dropouts,
        "dimension": case.dimension,
        "honest_fraction": case.honest_fraction,
        "survivor_fraction": case.survivor_fraction,
        "degree": bounds.degree,
        "threshold": bounds.threshold,
        "server_s": round(meter.server, 3),
        "client_max_s": round(max(spent), 3),
        "client_mean_s": round(sum(spent) / len(spent), 3),
        "upload_bytes": max(meter.up.values()),
        "upload_overhead_bytes": max(meter.up.values()) - 4 * case.dimension,
        "download_bytes": max(meter.down.values()),
    }


class _Round:
    """One round; every message is packed by its sender and unpacked by its receiver."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.identities = [Identity.generate() for _ in range(case.clients)]
        self.roster = Roster({i: who.public_key for i, who in enumerate(self.identities)})
        self.terms = SecAggTerms(
            run_id="benchmark",
            server_round=1,
            session=secrets.token_bytes(32),
            config_digest="0" * 64,
            plan_digest="0" * 64,
            honest_fraction=case.honest_fraction,
            survivor_fraction=case.survivor_fraction,
            min_cohort=3,
            dimension=case.dimension,
        )
        self.coordinator = Coordinator(self.terms, self.roster)
        self.sessions: dict[int, ClientSession] = {}
        self.alive = range(case.dropouts, case.clients)
        self.expected: npt.NDArray[np.uint32] = np.zeros(case.dimension, dtype=np.uint32)
        self.broadcast = b""

    def advertise(self, meter: _Meter) -> None:
        """Phase 1."""
        for client, identity in enumerate(self.identities):
            with meter.at_client(client):
                session, message = ClientSession.start(self.terms, client, identity, self.roster)
                raw = message.to_bytes()
            self.sessions[client] = session
            meter.up[client] += len(raw)
            with meter.at_server():
                self.coordinator.accept(client, Advertisement.from_bytes(raw))
        with meter.at_server():
            self.broadcast = self.coordinator.key_list().to_bytes()

    def share(self, meter: _Meter) -> None:
        """Phase 2."""
        for client, session in self.sessions.items():
            meter.down[client] += len(self.broadcast)
            with meter.at_client(client):
                raw = session.share(KeyList.from_bytes(self.broadcast)).to_bytes()
            meter.up[client] += len(raw)
            with meter.at_server():
                self.coordinator.accept(client, Shares.from_bytes(raw))

    def mask(self, meter: _Meter) -> None:
        """Phase 3; the dropouts do the work, and their upload is lost."""
        with meter.at_server():
            dealt = self.coordinator.deal()
        for client, session in self.sessions.items():
            with meter.at_server():
                down = dealt[client].to_bytes()
            meter.down[client] += len(down)
            vector = np.random.default_rng(client).integers(
                0, 2**32, self.case.dimension, dtype=np.uint32
            )
            with meter.at_client(client):
                raw = session.mask(SharesForYou.from_bytes(down), vector).to_bytes()
            meter.up[client] += len(raw)
            if client in self.alive:
                self.expected += vector
                with meter.at_server():
                    self.coordinator.accept(client, MaskedInput.from_bytes(raw))
        with meter.at_server():
            self.broadcast = self.coordinator.survivor_list().to_bytes()

    def confirm(self, meter: _Meter) -> None:
        """Phase 4."""
        for client in self.alive:
            meter.down[client] += len(self.broadcast)
            with meter.at_client(client):
                message = SurvivorList.from_bytes(self.broadcast)
                raw = self.sessions[client].confirm(message).to_bytes()
            meter.up[client] += len(raw)
            with meter.at_server():
                self.coordinator.accept(client, Confirmation.from_bytes(raw))
        with meter.at_server():
            self.broadcast = self.coordinator.confirmations().to_bytes()

    def reveal(self, meter: _Meter) -> None:
        """Phase 5, and the comparison with the plain sum."""
        for client in self.alive:
            meter.down[client] += len(self.broadcast)
            with meter.at_client(client):
                message = Confirmations.from_bytes(self.broadcast)
                raw = self.sessions[client].reveal(message).to_bytes()
            meter.up[client] += len(raw)
            with meter.at_server():
                self.coordinator.accept(client, Reveals.from_bytes(raw))
        with meter.at_server():
            found = self.coordinator.result()
        if not np.array_equal(found.total, self.expected):
            msg = f"clients={self.case.clients}: the sum differs from the plain one."
            raise SecureAggregationError(msg)


def _stream_seconds(words: int, *, aes: bool) -> float:
    """Return the seconds that one key stream of 32-bit words takes, the mean of 20."""
    zeros, key, nonce = bytes(4 * words), os.urandom(32), bytes(16)
    out = bytearray(4 * words + 15)
    begun = time.process_time()
    for _ in range(_STREAM_REPEATS):
        cipher = (
            Cipher(algorithms.AES(key), modes.CTR(nonce))
            if aes
            else Cipher(algorithms.ChaCha20(key, nonce), mode=None)
        )
        cipher.encryptor().update_into(zeros, out)
    return (time.process_time() - begun) / _STREAM_REPEATS
