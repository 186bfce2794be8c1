"""Our node as a process: ``python -m tests.contract.fleetnode FOLDER PORT KEY PARTITION``.

Reads ``conditions`` in its folder (one reason a line), writes ``events.jsonl``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.fleet.node import Node
from client.fleet.settings import NodeSettings
from client.fleet.transport import Endpoint

WORKER = (sys.executable, "-P", "-m", "tests.contract.tinyworker")


def settings(folder: Path, port: int, key: Path, partition: int) -> NodeSettings:
    """Return the settings of a node that runs the tiny app."""
    return NodeSettings(
        endpoint=Endpoint(host="127.0.0.1", port=port, ca=folder.parent / "ca.crt"),
        key=key,
        policy=folder / "policy.toml",
        status=folder / "status.json",
        node_config={"partition-id": partition},
        poll_seconds=0.5,
        heartbeat_seconds=10.0,
        command=WORKER,
    )


@dataclass
class RunningNode:
    """A node process that was started."""

    folder: Path
    process: subprocess.Popen[bytes]

    def events(self) -> list[dict[str, Any]]:
        """Return what it said so far."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def names(self) -> list[str]:
        """Return the names of its events."""
        return [event["event"] for event in self.events()]

    def status(self) -> dict[str, Any]:
        """Return its status file."""
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found


def prepare(folder: Path) -> Path:
    """Make the folder of a node."""
    folder.mkdir(exist_ok=True)
    (folder / "policy.toml").write_text("schema = 1\n", encoding="utf-8")
    return folder


def main() -> None:
    """Run until told to stop."""
    folder, port, key, partition = sys.argv[1:]
    place, stop = Path(folder), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def conditions() -> Sequence[str]:
        file = place / "conditions"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else ()

    def on_event(event: Mapping[str, Any]) -> None:
        with (place / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event) + "\n")

    Node(
        settings(place, int(port), Path(key), int(partition)),
        stop=stop,
        conditions=conditions,
        on_event=on_event,
    ).run()


if __name__ == "__main__":
    main()
