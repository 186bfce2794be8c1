"""``fedslm client run`` and ``status``: a real process, whose server is not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

from client.charges import example_charge
from client.devicestore import Answer
from client.fleet.status import read_status
from client.home import DeviceHome
from client.nodelog import NodeLog
from client.policy import ClientPolicy
from client.state import DeviceState
from shared.errors import AlreadyRunning, FleetError
from simulations.node_cli import add_commands, in_words
from simulations.node_run import in_words as event_in_words
from simulations.node_run import worker_lines
from simulations.node_status import running, status_of
from tests.client.device import plan, write_policy
from tests.simulations.devices import device

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, typer
from simulations.node_cli import add_commands
from shared.errors import FedSLMError
app = typer.Typer(pretty_exceptions_enable=False)
add_commands(app)
try:
    app(sys.argv[1:])
except FedSLMError as error:
    sys.stderr.write(f"error [{error.code}]")
    sys.exit(error.exit_code)
"""


def command(app_arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process."""
    app = typer.Typer()
    add_commands(app)
    # Without its own error handling it returns the exit code of a command that left early.
    code = app(app_arguments, standalone_mode=False) or 0
    return code, capsys.readouterr().out


@contextmanager
def node(home: DeviceHome, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a node as a process of its own; it is gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "run", "--home", str(home.path), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def events(process: subprocess.Popen[str], *, until: str) -> list[dict[str, Any]]:
    """Read events from a node until one of a name came."""
    found: list[dict[str, Any]] = []
    assert process.stdout is not None
    for line in process.stdout:
        found.append(json.loads(line))
        if found[-1]["event"] == until:
            return found
    pytest.fail(f"the node ended: {found}")


def eventually(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def unreachable() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def home(tmp_path: Path) -> DeviceHome:
    return device(tmp_path / "node", fleet=unreachable())


@pytest.mark.slow
def test_a_node_runs_alone_says_so_and_stops_at_once(
    home: DeviceHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20.0)
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        with node(home, **variables) as process:
            assert [e["event"] for e in events(process, until="away")] == ["starting", "away"]
            assert running(home)
            assert command(["status", "--home", str(home.path), "--check"], capsys)[0] == 0
            heard = {manager.recv(400).split(b"\n")[0] for _ in range(4)}
            assert {b"READY=1", b"WATCHDOG=1"} <= heard
            again = subprocess.run(
                [sys.executable, "-c", SCRIPT, "run", "--home", str(home.path)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert again.returncode == AlreadyRunning.exit_code
            assert AlreadyRunning.code in again.stderr
            found = status_of(home)["node"]
            assert (found["running"], found["state"]) == (True, "away")
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert time.monotonic() - started < 5.0
    assert not running(home)
    assert command(["status", "--home", str(home.path), "--check"], capsys)[0] == 1
    logged = [json.loads(line)["event"] for line in home.log.read_text("ascii").splitlines()]
    assert logged[0] == "starting"
    assert logged[-1] == "stopped"


@pytest.mark.slow
def test_a_node_rests_while_a_condition_does_not_hold(home: DeviceHome) -> None:
    write_policy(home.path, conditions={"min_free_memory_mb": 10**9})
    with node(home) as process:
        paused = events(process, until="paused")[-1]
        assert "min_free_memory_mb: " in paused["reasons"][0]
        write_policy(home.path)
        events(process, until="resumed")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


@pytest.mark.slow
def test_a_killed_node_leaves_the_folder_free(home: DeviceHome) -> None:
    with node(home) as process:
        events(process, until="away")
        process.kill()
        process.wait(timeout=20)
        eventually(lambda: not running(home))
        assert (read_status(home.path) or {})["state"] == "away"  # what it wrote last
        assert status_of(home)["node"]["state"] == "stopped"
        with node(home) as second:
            events(second, until="starting")


def test_a_folder_that_is_not_enrolled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("run", "status"):
        with pytest.raises(FleetError, match="no enrolled device"):
            command([verb, "--home", str(tmp_path)], capsys)


def test_status_of_a_device_that_did_nothing_yet(
    home: DeviceHome, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = command(["status", "--home", str(home.path), "--json"], capsys)
    found = json.loads(text)
    assert code == 0
    assert found["name"] == "clinic-7"
    assert found["node"]["running"] is False
    assert found["node"]["last_contact"] is None
    assert found["certificate"]["days_left"] == pytest.approx(365, abs=1)
    assert found["conditions"] == []
    assert found["policy"]["budgets"][0]["spent"] is None
    assert found["adapter"] is None
    words = "\n".join(in_words(found))
    assert "Node: not running" in words
    assert "Last contact with the server: never." in words
    assert "nothing spent of epsilon 8" in words
    assert "Adapter: none yet." in words
    assert str(home.path) not in text


@pytest.mark.slow
def test_status_says_what_was_spent_done_and_refused(home: DeviceHome) -> None:
    write_policy(home.path, conditions={"hours": ["00:00-24:00"], "min_free_memory_mb": 10**9})
    limits = ClientPolicy.load(home.policy)
    assert limits.example is not None
    charge = example_charge(plan(), limits.example)
    answer = Answer(run_id="r", server_round=1, plan_digest=plan().digest(), request="q")
    with DeviceState(home.state) as state:
        state.commit(state.admit(answer, [charge], repeatable=False))
        [spent] = state.spent()
    log = NodeLog(home.log)
    now = time.time()
    log.write({"event": "joined", "at": now - 7200})
    log.write({"event": "answered", "at": now - 3600, "run_id": "5", "kind": "train", "seconds": 4})
    why = "fedslm.client: refused [policy-refused]: x"
    log.write({"event": "log", "at": now - 61, "text": why})
    log.write({"event": "log", "at": now - 61, "text": "a library says something"})
    log.write({"event": "refused", "at": now - 60, "run_id": "6", "code": "policy-refused"})
    log.write({"event": "away", "at": now - 5})
    found = status_of(home)
    assert found["policy"]["budgets"][0]["spent"]["epsilon"] == spent.epsilon > 0
    assert found["work"]["answered"] == found["work"]["refused"] == 1
    assert [r["text"] for r in found["work"]["reasons"]] == [why]
    assert found["node"]["last_contact"] == pytest.approx(now - 60)
    words = "\n".join(in_words(found))
    assert f"epsilon {spent.epsilon:.4f} of 8 spent" in words
    assert "answered train of run 5 in 4 s" in words
    assert "refused  of run 6 [policy-refused]" in words
    assert "(1 min ago)" in words
    assert "1 NOT met" in words
    assert "yes hours" in words


def test_parts_that_cannot_be_read_say_why(home: DeviceHome) -> None:
    home.policy.unlink()
    home.certificate.write_text("", encoding="ascii")
    (home.state / "device.sqlite").write_bytes(b"no database at all" * 100)
    found = status_of(home)
    assert found["policy"]["error"]["code"] == "policy-refused"
    assert found["certificate"]["error"]["code"] == "certificate-invalid"
    assert found["conditions"][0]["name"] == "policy"
    words = "\n".join(in_words(found))
    assert "[policy-refused]" in words
    write_policy(home.path)
    assert status_of(home)["policy"]["error"]["code"] == "ledger"


def test_a_device_that_left(home: DeviceHome) -> None:
    home.mark_left()
    assert "left the fleet" in "\n".join(in_words(status_of(home)))


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "paused", "reasons": ["a", "b"]}, "paused: a; b"),
        ({"event": "message", "run_id": "5", "kind": "train"}, "working for run 5 (train)"),
        ({"event": "answered", "run_id": "5", "seconds": 1.5}, "answered run 5 in 1.5 s"),
        ({"event": "refused", "run_id": "5", "code": "c"}, "refused for run 5 [c]"),
        ({"event": "log", "text": "t"}, "t"),
        ({"event": "away"}, "the server does not answer; trying again"),
        ({"event": "new"}, "new"),
    ],
)
def test_events_in_words(event: dict[str, Any], words: str) -> None:
    assert event_in_words(event) == words


def test_what_a_child_writes_to_standard_error_is_kept() -> None:
    kept: list[str] = []
    with worker_lines(kept.append):
        subprocess.run(
            [sys.executable, "-c", "import sys; sys.stderr.write('one\\n\\ntwo\\n')"], check=True
        )
    assert kept == ["one", "two"]


def test_the_commands_start_without_anything_heavy() -> None:
    code = (
        "import sys; import simulations.node_cli; "
        "print([m for m in ('numpy', 'pydantic', 'flwr', 'torch', 'rich', 'cryptography', 'grpc') "
        "if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_running_node_loads_neither_flower_nor_torch() -> None:
    code = (
        "import sys, simulations.node_run, client.conditions, client.fleet.node, client.home;"
        "print([m for m in ('numpy', 'flwr', 'torch', 'scipy', 'grpc') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
