"""A process that shares this one's memory: answers, failures, and never an orphan."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.privacy.noise import NoiseSource
from simulations.forks import Fork, can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux alone")


def _gone(pid: int) -> bool:
    """Tell whether a process has ended, waiting for it up to ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_it_answers_with_what_this_process_held() -> None:
    held = {"factor": 3}
    with Fork(lambda request: request * held["factor"]) as fork:
        held["factor"] = 5
        for request in (b"a", b"", b"xy" * 3_000_000):
            fork.ask(request)
            assert fork.answer() == request * 3


def test_an_answer_nobody_waited_for_is_thrown_away() -> None:
    with Fork(bytes.upper) as fork:
        fork.ask(b"first")
        fork.ask(b"second")
        assert fork.answer() == b"SECOND"


def test_a_failure_is_told_by_its_type_alone(caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: bytes) -> bytes:
        if request == b"bad":
            msg = "patient 7 has the flu"
            raise ValueError(msg)
        return request

    with Fork(fail) as fork, caplog.at_level(logging.WARNING):
        fork.ask(b"bad")
        assert fork.answer() is None
        fork.ask(b"good")
        assert fork.answer() == b"good"
    assert "ValueError" in caplog.text
    assert "patient" not in caplog.text


def test_one_that_was_killed_is_gone_and_nothing_raises(caplog: pytest.LogCaptureFixture) -> None:
    with Fork(lambda request: str(os.getpid()).encode() + request) as fork:
        fork.ask(b"")
        pid = int(fork.answer() or b"0")
        assert pid != os.getpid()
        os.kill(pid, signal.SIGKILL)
        fork.ask(b"more")
        assert fork.answer() is None
        fork.ask(b"again")
        assert fork.answer() is None
    assert caplog.text.count("gone") == 1
    assert _gone(pid)


def test_it_leaves_with_the_block_whatever_it_is_doing() -> None:
    def pid_then_sleep(request: bytes) -> bytes:
        if request:
            time.sleep(60)
        return str(os.getpid()).encode()

    began = time.monotonic()
    with Fork(pid_then_sleep) as fork:
        fork.ask(b"")
        pid = int(fork.answer() or b"0")
        fork.ask(b"sleep")
    assert time.monotonic() - began < 20
    assert _gone(pid)
    fork.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_dies_with_its_parent(how: signal.Signals) -> None:
    code = (
        "import os, signal, time\n"
        "from simulations.forks import Fork\n"
        # Whoever runs tests in the background of a shell ignores it, and so do all descendants.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "fork = Fork(lambda request: str(os.getpid()).encode())\n"
        "fork.ask(b'')\n"
        "print(fork.answer().decode(), flush=True)\n"
        "fork.ask(b'')\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(how)
        parent.wait(timeout=30)
    assert _gone(child)


def test_noise_of_the_operating_system_is_not_that_of_the_parent() -> None:
    source = NoiseSource.from_os()
    with Fork(lambda _: source.normal(64).tobytes()) as fork:
        fork.ask(b"")
        answer = fork.answer()
    assert answer is not None
    assert answer != source.normal(64).tobytes()
