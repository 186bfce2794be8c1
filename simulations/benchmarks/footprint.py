"""What a node takes of a device: time to start, and memory at rest and at work.

The parts run as they do on a device: the node's own process, and the worker, asked over its pipe to
train one round of DP-SGD on a base model of random weights. The server of this node does not
answer. Memory is what the kernel says: resident pages, and the proportional share of pages that
several processes share. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from simulations.benchmarks.footprintmodel import (
    M135,
    SEQUENCE,
    SMALL,
    Shape,
    policy_text,
    scenario,
    write_base,
    write_records,
)
from simulations.benchmarks.protocol import BenchResult, Check, Scalar

if TYPE_CHECKING:
    from client.fleet.child import Child
    from client.fleet.objects import Tree
    from client.home import DeviceHome

SUMMARY = "What a node takes of a device: time to start, memory at rest and while it trains."

IDLE_MB = 250.0
TRAINING_MB = 1500.0
NODE_MB = 60.0
START_SECONDS = 0.3
_MB = 1e6
_STARTS = 5
_ROUNDS = 2
_SETTLE = 3.0
_PATIENCE = 60.0
_COMMANDS = {
    "fedslm client run --help": "client run --help",
    "fedslm client status --help": "client status --help",
    "fedslm --help": "--help",
}
_NODE = "from simulations.node_run import run_device\n"
_RUN = "import sys; from pathlib import Path; from client.home import DeviceHome\n" + _NODE
_RUN += "run_device(DeviceHome.open(Path(sys.argv[1])), once=False, out=lambda line: None)\n"
_DIGEST = "import sys; from client.basedigest import base_digest; print(base_digest(sys.argv[1]))"


def run(*, quick: bool) -> BenchResult:
    """Start the commands, then a node, then a worker, and let it train.

    Raises:
        UsageError: on a system other than Linux.
    """
    if sys.platform != "linux":
        msg = "footprint reads Linux's process table."
        raise UsageError(msg, hint="Run it on the device that it is about.")
    shape = SMALL if quick else M135
    rows: list[Mapping[str, Scalar]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = {command: _start(words) for command, words in _COMMANDS.items()}
        rows += [{"part": command, "seconds": found} for command, found in starts.items()]
        home = _device(folder, shape)
        node = _node_at_rest(home)
        rows.append({"part": "node, no worker", **node})
        trained = _train(home, shape)
        rows += trained
    peak = max(float(row["peak_mb"] or 0.0) for row in trained)
    checks = (
        Check(
            name="start of a command (processor)",
            measured=max(starts.values()),
            limit=START_SECONDS,
            unit="s",
        ),
        Check(name="node before torch", measured=_mb(node, "rss_mb"), limit=NODE_MB, unit="MB"),
        Check(name="at rest", measured=_mb(node, "rss_mb"), limit=IDLE_MB, unit="MB"),
        Check(
            name="while training, node and worker",
            measured=_mb(node, "rss_mb") + peak,
            limit=TRAINING_MB,
            unit="MB",
        ),
    )
    return BenchResult(
        name="footprint",
        parameters={
            "parameters": shape.parameters,
            "quantization": "int8",
            "sequence": SEQUENCE,
            "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
            "quick": quick,
        },
        rows=tuple(rows),
        checks=checks,
    )


def _mb(row: Mapping[str, Scalar], key: str) -> float:
    """Return a number of a row."""
    return float(row[key] or 0.0)


def _start(words: str) -> float:
    """Return the least processor seconds that a command takes to start and end."""
    taken = []
    for _ in range(_STARTS):
        before = os.times()
        _finished([sys.executable, "-m", "simulations.cli", *words.split()])
        after = os.times()
        spent = after.children_user + after.children_system
        taken.append(spent - before.children_user - before.children_system)
    return round(min(taken), 3)


def _device(folder: Path, shape: Shape) -> DeviceHome:
    """Make the folder of a device with a base model, records and a policy."""
    from client.home import DeviceHome, NodeConfig
    from shared.pki import Authority, new_key, openssh_form
    from shared.privatefiles import create_private, make_private_folder

    base, data = folder / "base", folder / "notes.jsonl"
    write_base(base, shape)
    write_records(data)
    digest = _finished([sys.executable, "-c", _DIGEST, str(base)]).strip()
    path = folder / "node"
    make_private_folder(path)
    key = new_key()
    create_private(path / "node.key", key + openssh_form(key))
    Authority.create("footprint", days=2).save(path / "ca.crt", folder / "ca.key")
    (path / "policy.toml").write_text(policy_text(digest), encoding="utf-8")
    # The discard port of this machine: nobody answers.
    config = NodeConfig(
        name="footprint",
        client_index=0,
        fleet="127.0.0.1:9",
        control="127.0.0.1:9",
        data=str(data),
        base=str(base),
    )
    return DeviceHome.create(path, config)


def _node_at_rest(home: DeviceHome) -> dict[str, Scalar]:
    """Return the memory of a node that waits for its server, and its use of the processor."""
    from client.fleet.status import read_status

    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own program, no shell
        [sys.executable, "-c", _RUN, str(home.path)], env=_environment()
    )
    try:
        _wait(lambda: (read_status(home.path) or {}).get("state") == "away")
        ready = time.monotonic() - started
        time.sleep(_SETTLE)
        before = _processor(process.pid)
        time.sleep(_SETTLE)
        used = (_processor(process.pid) - before) / _SETTLE
        return {"seconds": round(ready, 2), **_memory(process.pid), "processor": round(used, 4)}
    finally:
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _train(home: DeviceHome, shape: Shape) -> list[dict[str, Scalar]]:
    """Return time and memory of a worker in each of some rounds, and at rest after them."""
    from client.fleet.child import Child
    from client.fleet.limits import DEFAULT_LIMITS

    rows: list[dict[str, Scalar]] = []
    child = Child(limits=DEFAULT_LIMITS)
    try:
        for number in range(1, _ROUNDS + 1):
            started = time.monotonic()
            _ask(child, home, shape, number)
            what = "loading and training" if number == 1 else "training"
            row: dict[str, Scalar] = {
                "part": f"worker, {what}",
                "seconds": round(time.monotonic() - started, 1),
            }
            # It gives memory back once its answer is written.
            time.sleep(_SETTLE)
            rows.append({**row, **_memory(child.pid or 0)})
            _forget_peak(child.pid or 0)
        rows.append({"part": "worker, warm and at rest", **_memory(child.pid or 0)})
    finally:
        child.end()
    return rows


def _ask(child: Child, home: DeviceHome, shape: Shape, number: int) -> None:
    """Let a worker train one round.

    Raises:
        UsageError: if it did not.
    """
    from client.fleet.messages import Question, RunInfo
    from client.fleet.settings import settings_of
    from shared.canonical import canonical_json
    from shared.scenarioplan import plan_of

    config = scenario("int8")
    plan = plan_of(config, population=config.clients.population or 1)
    question = Question(
        message_id="0" * 64,
        run_id=1,
        source=1,
        kind="train",
        group=str(number),
        created_at=time.time(),
        ttl=3600.0,
    )
    said = {"scenario": config.to_json(), "plan": canonical_json(plan.to_json())}
    found = child.ask(
        question,
        _instruction(config.digest(), plan.digest(), number, shape),
        node_id=1,
        node_config=settings_of(home).node_config,
        run=RunInfo(run_id=1, series_id=0, bundle="", config=said),
        go_on=lambda: True,
    )
    if isinstance(found, str):
        msg = f"The worker failed with code {found!r}."
        raise UsageError(msg, hint="Its standard error says more.")


def _instruction(config: str, plan: str, number: int, shape: Shape) -> Tree:
    """Return what a server would send."""
    import numpy as np

    from client.fleet.records import encode
    from client.fleet.worker import from_flower
    from shared.wire import Instruction, encode_instruction

    instruction = Instruction(
        run_id="footprint",
        server_round=number,
        config_digest=config,
        plan_digest=plan,
        vector=np.zeros(shape.adapter_size, dtype=np.float32),
    )
    return encode(from_flower(encode_instruction(instruction)))


def _memory(pid: int) -> dict[str, Scalar]:
    """Return the memory of a process, in MB of 1e6 bytes: resident, proportional, largest."""
    status = _table(Path(f"/proc/{pid}/status"))
    shares = _table(Path(f"/proc/{pid}/smaps_rollup"))
    return {
        "rss_mb": round(status["VmRSS"] / _MB, 1),
        "pss_mb": round(shares["Pss"] / _MB, 1),
        "peak_mb": round(status["VmHWM"] / _MB, 1),
    }


def _table(path: Path) -> dict[str, int]:
    """Return the sizes of one of the kernel's tables, in bytes."""
    found = {}
    for line in path.read_text(encoding="ascii").splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            found[words[0].rstrip(":")] = int(words[1]) * 1024
    return found


def _forget_peak(pid: int) -> None:
    """Let the kernel count the largest size of a process anew."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _processor(pid: int) -> float:
    """Return the seconds that a process used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(done: Callable[[], bool]) -> None:
    """Wait until something is so.

    Raises:
        UsageError: if it is not in a minute.
    """
    deadline = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > deadline:
            msg = "The node did not start."
            raise UsageError(msg, hint="Its standard error says more.")
        time.sleep(0.05)


def _environment() -> dict[str, Any]:
    """Return the environment of a part, in which it finds this installation."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _finished(command: list[str]) -> str:
    """Run a command of ours and return what it printed."""
    run = subprocess.run(  # noqa: S603 - our own program, no shell
        command, capture_output=True, text=True, check=True, env=_environment()
    )
    return run.stdout
