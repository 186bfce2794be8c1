"""``fedslm server run``: starts the processes of a server and keeps them running.

One supervisor a folder. It starts SuperLink, executor, front, control service, dashboard and the
keeper of runs, restarts what dies, and stops all of it on SIGTERM or SIGINT within ten seconds. If
it is killed itself, the kernel kills the rest.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

from server.home import ServerHome
from server.locks import held_within, is_held
from server.processes import Service, ServiceRunner, wait_for_all
from server.superlink import environment, superexec_command, superlink_command
from shared.errors import FedSLMError, OutOfDisk, RunFolderError
from shared.files import write_json

logger = logging.getLogger("fedslm.supervisor")

LOCK: Final = "supervisor.lock"
PID: Final = "supervisor.pid"
TICK_SECONDS: Final = 0.2
STATUS_SECONDS: Final = 2.0
LOCK_SECONDS: Final = 1.0
RENEWAL_SECONDS: Final = 3600.0

_OPTIONAL = {"control": "server.control", "dashboard": "server.dashboard"}


def services_of(home: ServerHome) -> tuple[Service, ...]:
    """Return the processes of a server; control service and dashboard where they are installed."""
    folder = str(home.path)
    found = [
        Service(name="superlink", command=superlink_command(home)),
        Service(name="superexec", command=superexec_command(home)),
        Service(name="front", command=_module("server.front", folder)),
        Service(name="runs", command=_module("server.keeper", folder)),
    ]
    found += [
        Service(name=name, command=_module(module, folder))
        for name, module in _OPTIONAL.items()
        if _is_there(f"{module}.__main__")
    ]
    return tuple(found)


class Supervisor:
    """Runs the processes of one folder until told to stop.

    Args:
        home: the folder.
        services: what to run; by default everything.
        checks: tells by name whether a service does its work, not only runs.
    """

    def __init__(
        self,
        home: ServerHome,
        *,
        services: Sequence[Service] | None = None,
        checks: Mapping[str, Callable[[], bool]] | None = None,
    ) -> None:
        self._home = home
        self._services = services_of(home) if services is None else tuple(services)
        self._checks = dict(port_checks(home) if checks is None else checks)
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._working: dict[str, bool] = {}
        self._writable = True

    def run(self) -> None:
        """Run until :meth:`stop` or a signal.

        Raises:
            AlreadyRunning: if another supervisor runs from the folder.
        """
        os.umask(0o077)
        with held_within(self._home.run / LOCK, LOCK_SECONDS):
            kill_leftovers(self._home.run)
            (self._home.run / PID).write_text(f"{os.getpid()}\n", encoding="utf-8")
            runners = [self._runner(service) for service in self._services]
            checker = threading.Thread(target=self._check, name="checks", daemon=True)
            checker.start()
            try:
                self._loop(runners)
            finally:
                self._stop.set()
                logger.info("stopping")
                wait_for_all(runners)
                self._write_status([], stopped=True)
                (self._home.run / PID).unlink(missing_ok=True)

    def stop(self) -> None:
        """Ask :meth:`run` to return; may be called from a signal handler or a thread."""
        self._stop.set()

    def stop_on_signals(self) -> None:
        """Stop on SIGTERM and SIGINT."""

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            self.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _loop(self, runners: Sequence[ServiceRunner]) -> None:
        """Tend all services, and write the status now and then."""
        written = looked = float("-inf")
        while not self._stop.is_set():
            now = time.monotonic()
            if now - looked >= RENEWAL_SECONDS:
                self._renew_certificate()
                looked = now
            for runner in runners:
                before = runner.state.restarts
                runner.tend(now=now)
                if runner.state.restarts > max(before, 0):
                    code = runner.state.last_exit
                    logger.warning("%s ended (%s), started again", runner.service.name, code)
            if now - written >= STATUS_SECONDS:
                self._write_status(runners)
                written = now
            self._stop.wait(TICK_SECONDS)

    def _renew_certificate(self) -> None:
        """Renew the server's certificate in the last third of its time; nothing is restarted."""
        try:
            renewed = self._home.renew_server_certificate()
        except FedSLMError as error:
            logger.warning("the server's certificate was not renewed: %s", error.message)
        else:
            if renewed:
                logger.info("the server's certificate was renewed")

    def _runner(self, service: Service) -> ServiceRunner:
        """Return the runner of a service."""
        home = self._home
        return ServiceRunner(
            service,
            environment=os.environ | environment(home) | {"PYTHONUNBUFFERED": "1"},
            folder=home.path,
            logs=home.logs,
            pids=home.run,
        )

    def _check(self) -> None:
        """Ask each service whether it works, beside the loop so that none can hold it up."""
        while not self._stop.wait(STATUS_SECONDS / 2):
            for name, check in self._checks.items():
                self._working[name] = check()

    def _write_status(self, runners: Sequence[ServiceRunner], *, stopped: bool = False) -> None:
        """Write the health file."""
        now = time.monotonic()
        processes = {}
        for runner in runners:
            described = runner.describe(now=now)
            running = bool(described["running"])
            name = runner.service.name
            works = running and self._working.get(name, name not in self._checks)
            described["state"] = "up" if works else ("starting" if running else "down")
            processes[name] = described
        healthy = bool(processes) and all(one["state"] == "up" for one in processes.values())
        status = {
            "schema": 1,
            "pid": os.getpid(),
            "written": datetime.now(tz=UTC).isoformat(timespec="seconds"),
            "state": "stopped" if stopped else ("healthy" if healthy else "starting"),
            "seconds": round(now - self._began, 1),
            "processes": processes,
        }
        try:
            write_json(self._home.status, status)
        except (OutOfDisk, RunFolderError) as error:
            # A full disk costs the file, not the server.
            if self._writable:
                logger.warning("%s", error.message)
            self._writable = False
        else:
            self._writable = True


def port_checks(home: ServerHome) -> dict[str, Callable[[], bool]]:
    """Return checks that a service accepts connections where it should."""
    config = home.config
    bound = "127.0.0.1" if config.bind in {"0.0.0.0", "127.0.0.1"} else config.bind  # noqa: S104
    ports = {
        "superlink": ("127.0.0.1", config.superlink_port),
        "front": (bound, config.fleet_port),
        "control": (bound, config.control_port),
        "dashboard": (bound, config.dashboard_port),
    }
    return {name: _listening(*where) for name, where in ports.items()}


def read_status(home: ServerHome) -> dict[str, Any]:
    """Return what the supervisor last wrote; ``state`` is "stopped" where none runs.

    A supervisor that was killed leaves its last word; whether one runs is told by the lock.
    """
    try:
        status = json.loads(home.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = {"schema": 1, "state": "starting", "processes": {}}
    if not is_running(home):
        status |= {"state": "stopped", "processes": {}}
    return dict(status)


def is_running(home: ServerHome) -> bool:
    """Tell whether a supervisor holds the folder."""
    return is_held(home.run / LOCK)


def kill_leftovers(folder: Path) -> None:
    """Kill what pid files name and that is still ours, where the kernel has no leash.

    A process group is killed only if its leader's command line is that of one of our services.
    """
    for path in folder.glob("*.pid"):
        if path.name == PID:
            continue
        try:
            pid = int(path.read_text(encoding="utf-8"))
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
            continue
        if any(word.startswith(b"server.") or b"flower-superexec" in word for word in words):
            try:
                os.killpg(pid, signal.SIGKILL)
            except OSError:
                logger.warning("%s names a process that cannot be killed", path.name)
        path.unlink(missing_ok=True)


def _listening(host: str, port: int) -> Callable[[], bool]:
    """Return a check that somebody accepts connections."""
    import socket

    def check() -> bool:
        try:
            with socket.create_connection((host, port), timeout=1.0):
                return True
        except OSError:
            return False

    return check


def _module(name: str, folder: str) -> list[str]:
    """Return the command line of a module."""
    return [sys.executable, "-m", name, folder]


def _is_there(name: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
