"""The processes of ``fedslm up``: one server and its nodes, each on a leash."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from server.processes import Service, ServiceRunner, wait_for_all
from shared.errors import FleetError
from shared.files import disk_errors

SERVER, NODES, LOGS = "server", "nodes", "logs"
_NODE_RESTARTS = 5


class Processes:
    """Starts the server and then its nodes, keeps them up, and ends them.

    Args:
        folder: of the whole fleet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runners: list[ServiceRunner] = []

    def start(self, name: str, words: list[str], *, grace: float) -> None:
        """Start one process of ours on a leash."""
        logs = self._folder / LOGS
        with disk_errors(logs):
            logs.mkdir(exist_ok=True)
        runner = ServiceRunner(
            Service(
                name=name,
                command=[sys.executable, "-P", "-m", "simulations.cli", *words],
                grace_seconds=grace,
            ),
            environment=_environment(),
            folder=self._folder,
            logs=logs,
            pids=logs,
        )
        self._runners.append(runner)
        runner.tend(now=time.monotonic())

    def tend(self) -> None:
        """Start again what has ended, a few times.

        Raises:
            FleetError: if something does not stay up.
        """
        for runner in self._runners:
            runner.tend(now=time.monotonic())
            if runner.state.restarts > _NODE_RESTARTS:
                log = self._folder / LOGS / f"{runner.service.name}.log"
                msg = f"{runner.service.name} ended {runner.state.restarts} times."
                raise FleetError(msg, hint=f"Look into {log}.")

    def let_fetch(self) -> None:
        """Tell the nodes to look for an adapter now, not within a quarter of an hour."""
        for runner in self._runners[1:]:
            process = runner.state.process
            # A node that is only starting has no handler for the signal yet, and would end.
            if process is not None and runner.running and self._node_state(runner) is not None:
                process.send_signal(signal.SIGUSR1)

    def nodes(self) -> list[dict[str, Any]]:
        """Return how every node stands, by name."""
        return [
            {"name": runner.service.name, **(self._node_state(runner) or {"state": "starting"})}
            for runner in self._runners[1:]
        ]

    def end(self) -> None:
        """Stop everything; nodes first, so that they can say goodbye."""
        wait_for_all(self._runners[1:])
        wait_for_all(self._runners[:1])
        self._runners.clear()

    def _node_state(self, runner: ServiceRunner) -> dict[str, Any] | None:
        """Return what a running node says about itself; None before it has said anything."""
        from client.fleet.status import read_status as read_node

        said = read_node(self._folder / NODES / runner.service.name)
        process = runner.state.process
        if said is None or process is None or said.get("pid") != process.pid:
            return None
        counts = {key: said.get(key, 0) for key in ("answered", "refused", "failed")}
        return {"state": said.get("state"), **counts}


def _environment() -> dict[str, str]:
    """Return the environment of the processes: ours, without telemetry, unbuffered."""
    return os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
