"""Services: started, restarted with pauses, logged, stopped with all that they have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.locks import held_within, is_held
from server.logs import LineLog
from server.processes import FIRST_PAUSE, LEASH, Service, ServiceRunner, wait_for_all
from server.supervisor import Supervisor, is_running, kill_leftovers, read_status
from shared.errors import AlreadyRunning
from tests.server.fleetkit import alive, family_of, make_home, wait_until

FOREVER = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    ),
]
BRIEF = [sys.executable, "-c", "raise SystemExit(3)"]


def runner(folder: Path, command: list[str], *, grace: float = 2.0) -> ServiceRunner:
    return ServiceRunner(
        Service(name="one", command=command, grace_seconds=grace),
        environment=dict(os.environ),
        folder=folder,
        logs=folder,
        pids=folder,
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_service_runs_logs_and_stops(tmp_path: Path) -> None:
    one = runner(tmp_path, FOREVER)
    try:
        one.tend(now=0.0)
        log = tmp_path / "one.log"
        wait_until("a line", lambda: bool(log.read_text()), seconds=10)
        [line] = lines(log)
        assert (line["message"], line["logger"]) == ("here", "one")
        assert int((tmp_path / "one.pid").read_text()) == one.describe(now=1.0)["pid"]
    finally:
        wait_for_all([one])
    assert not one.running
    assert not (tmp_path / "one.pid").exists()


def test_what_ends_is_started_again_after_longer_and_longer_pauses(tmp_path: Path) -> None:
    one = runner(tmp_path, BRIEF)
    try:
        now, pauses = 0.0, []
        for _ in range(3):
            one.tend(now=now)
            assert one.wait(10.0)
            one.tend(now=now)
            assert one.state.process is None
            pauses.append(one.state.next_start - now)
            now = one.state.next_start
    finally:
        wait_for_all([one])
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert one.state.last_exit == 3


@pytest.mark.slow
def test_who_does_not_listen_is_killed_with_all_that_he_started(tmp_path: Path) -> None:
    one = runner(tmp_path, STUBBORN, grace=0.5)
    one.tend(now=0.0)
    log = tmp_path / "one.log"
    wait_until("a child", lambda: bool(log.read_text()), seconds=10)
    child = int(str(lines(log)[0]["message"]))
    assert alive(child)
    began = time.monotonic()
    wait_for_all([one])
    assert time.monotonic() - began < 5
    wait_until("its end", lambda: not alive(child), seconds=5)


@pytest.mark.slow
def test_the_kernel_kills_what_outlives_its_parent(tmp_path: Path) -> None:
    """The parent is killed; its child, on the leash, goes with it."""
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-S', '-E', {str(LEASH)!r}, str(os.getpid()),"
        " sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "time.sleep(1)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    wait_until("its end", lambda: not alive(child), seconds=5)


def test_a_leash_without_its_parent_starts_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')"
    done = subprocess.run([sys.executable, str(LEASH), "1", sys.executable, "-c", code])
    assert done.returncode == 1
    assert not mark.exists()


@pytest.mark.slow
def test_a_supervisor_restarts_what_dies_and_stops_when_told(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    service = Service(name="one", command=FOREVER)
    supervisor = Supervisor(home, services=[service], checks={})
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        wait_until("health", lambda: read_status(home)["state"] == "healthy", seconds=15)
        assert is_running(home)
        with pytest.raises(AlreadyRunning):
            Supervisor(home, services=[], checks={}).run()
        first = int((home.run / "one.pid").read_text())
        os.kill(first, signal.SIGKILL)
        wait_until("another", lambda: _another(home.run / "one.pid", first), seconds=10)
    finally:
        supervisor.stop()
        thread.join(10)
    assert not thread.is_alive()
    assert not is_running(home)
    assert read_status(home)["state"] == "stopped"
    assert read_status(home)["processes"] == {}


@pytest.mark.parametrize("hours", [0, 25], ids=["new", "expired"])
def test_a_supervisor_renews_a_certificate_when_it_is_time(tmp_path: Path, hours: int) -> None:
    home = make_home(tmp_path)
    issued = datetime.now(UTC) - timedelta(hours=hours)
    before = home.authority().issue_server(["localhost"], days=1, now=issued).certificate
    home.server_certificate.write_bytes(before)
    supervisor = Supervisor(home, services=[], checks={})
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        wait_until("a status", home.status.exists, seconds=15)
    finally:
        supervisor.stop()
        thread.join(10)
    assert (home.server_certificate.read_bytes() == before) == (hours == 0)


def _another(path: Path, first: int) -> bool:
    """Tell whether a pid file names another process."""
    return path.exists() and int(path.read_text()) != first


@pytest.mark.slow
def test_only_our_own_leftovers_are_killed(tmp_path: Path) -> None:
    ours = subprocess.Popen([*FOREVER, "server.front"], start_new_session=True)
    other = subprocess.Popen(FOREVER, start_new_session=True)
    with ours, other:
        for name, pid in (("front", ours.pid), ("other", other.pid), ("gone", 2**22 - 1)):
            (tmp_path / f"{name}.pid").write_text(str(pid))
        (tmp_path / "broken.pid").write_text("no number")
        kill_leftovers(tmp_path)
        assert ours.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        assert not list(tmp_path.glob("*.pid"))
        other.kill()


def test_a_lock_is_waited_for_and_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    with held_within(path, 0.0):
        assert is_held(path)
        with pytest.raises(AlreadyRunning), held_within(path, 0.1):
            pass
    assert not is_held(path)


def test_lines_become_objects_and_objects_stay_as_they_are(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "x.log", "x")
    log.write("\x1b[92mINFO \x1b[0m: hello\n")
    log.write('{"message": "mine", "n": 1}\n')
    log.write("{not json\n")
    log.write("\n")
    log.write("x" * 10_000)
    log.close()
    found = lines(tmp_path / "x.log")
    assert [line.get("message") for line in found[:3]] == ["INFO : hello", "mine", "{not json"]
    assert found[1] == {"message": "mine", "n": 1}
    assert len(str(found[3]["message"])) == 4000


def test_a_family_is_found() -> None:
    child = subprocess.Popen(FOREVER, stdout=subprocess.DEVNULL)
    with child:
        assert child.pid in family_of(os.getpid())
        child.kill()
