"""What a node costs: ``python -m tests.contract.measure_node [ROUNDS]`` prints JSON.

A SuperLink, its executor and one node on this machine, trivial work. ``round_seconds`` is from the
ServerApp's first push to its last reply, and once with Flower's own Grid, which sleeps a second
when a reply is announced before its objects are there; ``node_seconds`` is from the node's receipt
of a message to the server's receipt of the answer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.contract.fleetnode import RunningNode, prepare
from tests.contract.superlink import ROOT, superlink, wait_for

IMPORT = (
    "import time; t = time.perf_counter(); import client.fleet.node; print(time.perf_counter() - t)"
)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and range, rounded to a millisecond."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def import_processor_seconds() -> dict[str, float]:
    """Return the processor time of importing the node in a fresh process."""
    command = [sys.executable, "-c", IMPORT]
    return spread([float(subprocess.check_output(command, cwd=ROOT)) for _ in range(5)])


def memory_mb(pid: int, name: str) -> float:
    """Return one line of a process's memory, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise KeyError(name)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rounds: int) -> dict[str, Any]:
    """Run the node and return the figures."""
    found: dict[str, Any] = {
        "load_before": os.getloadavg()[0],
        "import_processor_seconds": import_processor_seconds(),
    }
    with (
        tempfile.TemporaryDirectory() as name,
        superlink(Path(name)) as link,
    ):
        folder = prepare(link.folder / "node")
        module = [sys.executable, "-m", "tests.contract.fleetnode", str(folder), str(link.port)]
        node = RunningNode(folder, link.spawn("n", *module, str(link.make_key("node")), "0"))
        pid = node.process.pid
        wait_for(lambda: "joined" in node.names(), 20, "joining")
        before, started = cpu_seconds(pid), time.monotonic()
        time.sleep(20)
        used = (cpu_seconds(pid) - before) / (time.monotonic() - started)
        found["idle"] = {"resident_mb": memory_mb(pid, "VmRSS"), "processor_percent": 100 * used}
        before = cpu_seconds(pid)
        link.start_run(rounds=rounds, nodes=1, quick=1)
        first = link.wait_rounds(rounds, 30 + 5 * rounds)
        found["round_seconds"] = spread([r["seconds"] for r in first[1:]])
        found["node_seconds"] = spread(node_seconds(node.events())[1:])
        used = cpu_seconds(pid) - before
        found["processor_seconds_a_message"] = round(used / rounds, 4)
        found["after_small_messages_mb"] = memory_mb(pid, "VmHWM")
        found["worker_mb"] = node.status()["worker"]["resident_mb"]
        link.rounds_file.unlink()
        link.start_run(rounds=rounds, nodes=1)
        plain = link.wait_rounds(rounds, 30 + 5 * rounds)
        found["round_seconds_with_flowers_pause"] = spread([r["seconds"] for r in plain[1:]])
        link.rounds_file.unlink()
        link.start_run(rounds=3, nodes=1, size=1_000_000, patience=60.0, quick=1)
        large = link.wait_rounds(3, 120)
        found["round_seconds_of_4_mb"] = spread([r["seconds"] for r in large])
        found["after_messages_of_4_mb_mb"] = memory_mb(pid, "VmHWM")
    return {**found, "load_after": os.getloadavg()[0], "rounds": rounds}


def node_seconds(events: list[dict[str, Any]]) -> list[float]:
    """Return the times from message to answer."""
    came = [event["at"] for event in events if event["event"] == "message"]
    went = [event["at"] for event in events if event["event"] == "answered"]
    return [end - start for start, end in zip(came, went, strict=True)]


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    sys.stdout.write(json.dumps(measure(count), indent=2) + "\n")
