"""One process of a server: started on a leash, restarted with back-off, its output logged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from server.logs import LineLog

LEASH: Final = Path(__file__).with_name("leash.py")
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
STEADY_SECONDS: Final = 60.0
_LONGEST_LINE = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What to run.

    Attributes:
        name: in logs and status.
        command: program and arguments.
        grace_seconds: how long it may take to stop before it is killed.
    """

    name: str
    command: Sequence[str]
    grace_seconds: float = 4.0


@dataclass(slots=True)
class ServiceState:
    """What is known about a service."""

    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    next_start: float = 0.0
    pause: float = FIRST_PAUSE
    restarts: int = -1
    last_exit: int | None = None
    readers: list[threading.Thread] = field(default_factory=list)


class ServiceRunner:
    """Keeps one service running.

    Every call is made by one thread, the supervisor's main thread: the kernel's leash is tied to
    the thread that started the process.

    Args:
        service: what to run.
        environment: of the process.
        folder: its working directory.
        logs: folder of its log.
        pids: folder of its pid file.
    """

    def __init__(
        self,
        service: Service,
        *,
        environment: Mapping[str, str],
        folder: Path,
        logs: Path,
        pids: Path,
    ) -> None:
        self.service = service
        self.state = ServiceState()
        self._environment = dict(environment)
        self._folder = folder
        self._pid_file = pids / f"{service.name}.pid"
        self._log = LineLog(logs / f"{service.name}.log", service.name)

    def tend(self, *, now: float) -> None:
        """Start the service if it is not running and its pause is over."""
        state = self.state
        if state.process is not None:
            code = state.process.poll()
            if code is None:
                if now - state.started > STEADY_SECONDS:
                    state.pause = FIRST_PAUSE
                return
            self._ended(code, now)
        if now >= state.next_start:
            self._start(now)

    @property
    def running(self) -> bool:
        """Tell whether the process is there."""
        return self.state.process is not None and self.state.process.poll() is None

    def terminate(self) -> None:
        """Ask the process to stop, and all that it has started."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and all that it has started."""
        self._signal(signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended; returns whether it has."""
        process = self.state.process
        if process is None:
            return True
        try:
            process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Kill what is left of it and close the log."""
        self.kill()
        self.wait(2.0)
        for reader in self.state.readers:
            reader.join(1.0)
        with suppress(OSError):
            self._pid_file.unlink()
        self._log.close()

    def describe(self, *, now: float) -> dict[str, object]:
        """Return the service's part of the status."""
        process = self.state.process
        return {
            "running": self.running,
            "pid": process.pid if process is not None and self.running else None,
            "restarts": max(0, self.state.restarts),
            "last_exit": self.state.last_exit,
            "since": round(time.time() - (now - self.state.started), 1) if self.running else None,
        }

    def _start(self, now: float) -> None:
        """Start the process in a session of its own."""
        state = self.state
        command = [sys.executable, "-S", "-E", str(LEASH), str(os.getpid()), *self.service.command]
        process = subprocess.Popen(  # noqa: S603 - our own command line
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        state.process, state.started = process, now
        state.restarts += 1
        # Without it, on a full disk, the kernel's leash is what is left.
        with suppress(OSError):
            self._pid_file.write_text(f"{process.pid}\n", encoding="utf-8")
        reader = threading.Thread(
            target=self._read, args=(process.stdout,), name=f"log-{self.service.name}", daemon=True
        )
        reader.start()
        state.readers = [r for r in state.readers if r.is_alive()] + [reader]

    def _ended(self, code: int, now: float) -> None:
        """Note an end, and wait longer each time it comes soon."""
        state = self.state
        # What it had started goes with it: nothing may run beside its successor.
        self.kill()
        state.process, state.last_exit = None, code
        state.next_start = now + state.pause
        state.pause = min(LONGEST_PAUSE, state.pause * 2)

    def _signal(self, number: signal.Signals) -> None:
        """Signal the process group, which outlives its leader if it must."""
        process = self.state.process
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _read(self, stream: IO[bytes]) -> None:
        """Log what the process writes, line by line, until it has ended."""
        with stream:
            for line in iter(lambda: stream.readline(_LONGEST_LINE), b""):
                self._log.write(line.decode("utf-8", errors="replace"))


def wait_for_all(runners: Sequence[ServiceRunner]) -> None:
    """Stop services: ask all, wait as long as each may take, then kill what is left."""
    began = time.monotonic()
    for runner in runners:
        runner.terminate()
    for runner in runners:
        left = began + runner.service.grace_seconds - time.monotonic()
        runner.wait(left)
    for runner in runners:
        runner.close()
