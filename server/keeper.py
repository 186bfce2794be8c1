"""The keeper of runs: registers nodes, carries out orders, starts again what died.

One process of the server, beside the SuperLink that it calls. It remembers nothing that is not in
files, so that it may die at any point.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from types import FrameType
from typing import Final, Protocol

from server.bundle import build_bundle
from server.fleetdb import FleetDatabase
from server.fleetruns import ADAPTER, FINAL, LOCK, OUTCOME, FleetRuns, Outcome, RunProgress
from server.home import ServerHome
from server.locks import is_held
from server.superlinkclient import FlowerNode, FlowerRun, SuperLinkClient
from shared.errors import (
    AlreadyRunning,
    FedSLMError,
    OutOfDisk,
    QuorumNotReached,
    ServerUnreachable,
)

logger = logging.getLogger("fedslm.runs")

TICK_SECONDS: Final = 0.5
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 120.0
MOST_ATTEMPTS: Final = 10
SYNC_SECONDS: Final = 30.0
START_SECONDS: Final = 60.0

_LAST_WORD_SECONDS = 3.0

_TRANSIENT = frozenset({QuorumNotReached.code, AlreadyRunning.code})
_LITTLE_SPACE = 16 << 20
_SPACE_SECONDS = 30.0


class SuperLink(Protocol):
    """What the keeper asks of a SuperLink; see :class:`server.superlinkclient.SuperLinkClient`."""

    def nodes(self) -> tuple[FlowerNode, ...]:
        """Return all registered nodes."""

    def register_node(self, public_key: bytes) -> int | None:
        """Let a key call as a node."""

    def unregister_node(self, node_id: int) -> None:
        """Shut a node out."""

    def start_run(self, bundle: bytes, run_config: Mapping[str, str]) -> int:
        """Submit a bundle."""

    def stop_run(self, run_id: int) -> None:
        """Stop a run."""

    def runs(self) -> tuple[FlowerRun, ...]:
        """Return the newest runs."""


class Keeper:
    """Brings what is in line with what is wanted, a step at a time.

    Args:
        home: the server's folder.
        client: the way to its SuperLink.
        database: who is enrolled.
    """

    def __init__(self, home: ServerHome, client: SuperLink, database: FleetDatabase) -> None:
        self._home = home
        self._runs = FleetRuns(home)
        self._client = client
        self._database = database
        self._bundle = build_bundle()
        self._synced: frozenset[bytes] | None = None
        self._synced_at = float("-inf")
        self._unheld: dict[str, float] = {}
        self._at_work: set[str] = set()

    def step(self, *, now: float) -> None:
        """Look at everything once.

        Args:
            now: Unix seconds.

        Raises:
            ServerUnreachable: if the SuperLink does not answer.
            OutOfDisk: if what became of a run cannot be written.
        """
        self._sync_nodes(now)
        states = {name: self._runs.progress(name).state for name in self._runs.names()}
        running = [name for name, state in states.items() if state == "running"]
        held = {name for name in running if self._held(name)}
        self._at_work |= held
        idle = set(running) - held
        flower = {run.run_id: run for run in self._client.runs()} if idle else {}
        for name, state in states.items():
            if state in FINAL and not (state == "failed" and self._ordered_again(name)):
                continue
            try:
                self._advance(name, flower, now)
            except ServerUnreachable:
                raise
            except OutOfDisk:
                # Nothing about the run is wrong; it is looked at again when there is space.
                raise
            except FedSLMError as error:
                logger.warning("run %s: %s", name, error.message)
                self._fail(name, self._runs.progress(name), error.message, error.code)

    def _sync_nodes(self, now: float) -> None:
        """Register who is enrolled, unregister who is not; only when something changed."""
        wanted = frozenset(
            node.public_key
            for node in self._database.nodes()
            if node.role == "node" and node.revoked_at is None
        )
        if wanted == self._synced and now - self._synced_at < SYNC_SECONDS:
            return
        known = {node.public_key: node.node_id for node in self._client.nodes()}
        for key in wanted - known.keys():
            self._client.register_node(key)
        for key in known.keys() - wanted:
            self._client.unregister_node(known[key])
        self._synced, self._synced_at = wanted, now

    def _advance(self, name: str, flower: dict[int, FlowerRun], now: float) -> None:
        """Bring one run forward."""
        progress = self._runs.progress(name)
        if self._runs.read_order(name).wanted == "stopped":
            self._stop(name, progress)
        elif progress.state in {"ordered", "stopped", "failed"} or (
            progress.state == "waiting" and now >= progress.next_try
        ):
            self._submit(name, progress)
        elif progress.state == "running":
            self._look(name, progress, flower, now)

    def _stop(self, name: str, progress: RunProgress) -> None:
        """Stop a run; it can go on later from its checkpoint."""
        if progress.state == "stopped":
            return
        if progress.flower_run is not None:
            self._client.stop_run(progress.flower_run)
        self._runs.set_progress(name, replace(progress, state="stopped", reason="by order"))
        self._database.event("run-stopped", run=name)
        logger.info("run %s: stopped", name)

    def _submit(self, name: str, progress: RunProgress) -> None:
        """Hand a run to Flower, unless an earlier ServerApp is still on its way out."""
        if self._held(name):
            return
        finished = self._runs.released(name)
        (self._runs.folder(name) / OUTCOME).unlink(missing_ok=True)
        # A keeper that dies between the next two steps hands the run over twice; the lock on the
        # folder keeps the second ServerApp out.
        attempts = 1 if finished > progress.rounds else progress.attempts + 1
        flower_run = self._client.start_run(self._bundle, self._runs.run_config(name))
        self._unheld.pop(name, None)
        self._at_work.discard(name)
        self._runs.set_progress(
            name,
            replace(
                progress,
                state="running",
                flower_run=flower_run,
                attempts=attempts,
                rounds=finished,
                reason="",
            ),
        )
        after = len(self._runs.rounds(name))
        self._database.event("run-started", run=name, attempt=attempts, after_round=after)
        logger.info("run %s: attempt %d, after round %d", name, attempts, after)

    def _look(
        self, name: str, progress: RunProgress, flower: dict[int, FlowerRun], now: float
    ) -> None:
        """See whether a running run is over, dead, or at work."""
        outcome = self._runs.outcome(name)
        found = None if progress.flower_run is None else flower.get(progress.flower_run)
        if self._held(name):
            self._unheld.pop(name, None)
            self._at_work.add(name)
            return
        if outcome is not None:
            self._conclude(name, progress, outcome, now)
        elif found is None or found.status == "finished":
            self._ended_silently(name, progress, "its ServerApp ended without a word", now)
        elif now - self._unheld.setdefault(name, now) > self._patience(name, found):
            # Flower would notice by the missing heartbeat, minutes later.
            self._client.stop_run(found.run_id)
            self._ended_silently(name, progress, "its ServerApp died", now)

    def _patience(self, name: str, found: FlowerRun) -> float:
        """Return how long a ServerApp may take until it holds its folder, or says how it ended."""
        if name in self._at_work:
            return _LAST_WORD_SECONDS
        return START_SECONDS if found.status in {"pending", "starting"} else START_SECONDS / 3

    def _conclude(self, name: str, progress: RunProgress, outcome: Outcome, now: float) -> None:
        """Take note of how an attempt ended."""
        if outcome.state != "failed":
            digest = self._register(name) if outcome.rounds > 0 else None
            done = replace(progress, state=outcome.state, adapter=digest, reason="")
            self._runs.set_progress(name, done)
            self._database.event("run-finished", run=name, state=outcome.state)
            logger.info("run %s: %s after round %d", name, outcome.state, outcome.rounds)
        elif outcome.code == OutOfDisk.code:
            self._wait_for_space(name, progress, outcome.message, now)
        elif outcome.code in _TRANSIENT:
            self._again(name, progress, outcome.message, now)
        else:
            self._fail(name, progress, outcome.message, outcome.code)

    def _ended_silently(self, name: str, progress: RunProgress, reason: str, now: float) -> None:
        """Start a run again whose ServerApp said nothing, which it cannot on a full disk."""
        if disk_usage(self._runs.folder(name)).free < _LITTLE_SPACE:
            self._wait_for_space(name, progress, f"{reason}, and the disk is full", now)
        else:
            self._again(name, progress, reason, now)

    def _wait_for_space(self, name: str, progress: RunProgress, reason: str, now: float) -> None:
        """Let a run wait, for however long it takes: an attempt on a full disk is none."""
        attempts = max(0, progress.attempts - 1)
        waiting = replace(
            progress,
            state="waiting",
            attempts=attempts,
            reason=reason,
            next_try=now + _SPACE_SECONDS,
        )
        self._runs.set_progress(name, waiting)
        logger.warning("run %s: %s; again in %.0f s", name, reason, _SPACE_SECONDS)

    def _again(self, name: str, progress: RunProgress, reason: str, now: float) -> None:
        """Let a run wait before its next attempt, or give it up after many without a round."""
        finished = self._runs.released(name)
        attempts = 1 if finished > progress.rounds else progress.attempts
        if attempts >= MOST_ATTEMPTS:
            message = f"{attempts} attempts released nothing; the last: {reason}"
            self._fail(name, progress, message, "attempts")
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempts - 1))
        self._runs.set_progress(
            name,
            replace(
                progress, state="waiting", attempts=attempts, reason=reason, next_try=now + pause
            ),
        )
        logger.warning("run %s: %s; again in %.0f s", name, reason, pause)

    def _fail(self, name: str, progress: RunProgress, reason: str, code: str) -> None:
        """Give a run up until it is ordered again."""
        failed = replace(
            progress, state="failed", reason=reason, attempts=0, ordered_at=self._ordered_at(name)
        )
        self._runs.set_progress(name, failed)
        self._database.event("run-failed", run=name, code=code)
        logger.warning("run %s: failed: %s", name, reason)

    def _ordered_again(self, name: str) -> bool:
        """Tell whether a run that failed was ordered to go on since."""
        return self._ordered_at(name) != self._runs.progress(name).ordered_at

    def _ordered_at(self, name: str) -> str:
        """Return when a run was last ordered; empty if its order is damaged."""
        try:
            return self._runs.read_order(name).ordered_at
        except FedSLMError:
            return ""

    def _held(self, name: str) -> bool:
        """Tell whether a ServerApp, or another process, works in a run's folder."""
        return is_held(self._runs.folder(name) / LOCK)

    def _register(self, name: str) -> str | None:
        """Put the adapter of a finished run into the registry; returns the version's digest.

        It is not in use before somebody promotes it. What the registry refuses stays in the run
        folder.
        """
        from server.registry import add_run
        from server.registry.opening import server_registry

        folder = self._runs.folder(name)
        if not (folder / ADAPTER).is_dir():
            return None
        try:
            version = add_run(server_registry(self._home), folder, name=name)
        except FedSLMError as error:
            logger.warning("run %s: its adapter was not registered: %s", name, error.message)
            return None
        return version.digest


def serve(home: ServerHome) -> None:
    """Keep the runs of a folder until told to stop."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    database = FleetDatabase(home.fleet_database)
    with SuperLinkClient.of(home) as client:
        keeper = Keeper(home, client, database)
        trouble = ""
        while not stop.wait(TICK_SECONDS):
            try:
                keeper.step(now=time.time())
            except (ServerUnreachable, OutOfDisk) as error:
                if error.code != trouble:
                    logger.info("%s", error.message)
                trouble = error.code
            else:
                trouble = ""


if __name__ == "__main__":
    from server.logs import log_as_json

    log_as_json()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    serve(ServerHome.open(Path(sys.argv[1])))
