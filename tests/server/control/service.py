"""A real control service in a process of its own, on free ports of loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.control import ControlClient, Identity
from server.control.serve import PORTS
from server.control.settings import ControlSettings
from server.enrolling import enroll, issue_token
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from server.settings import ServerConfig
from shared.enrolment import Role
from shared.pki import certificate_request, new_key

CHILD = """
import json, sys
from pathlib import Path
from server.control.serve import run
from server.control.settings import ControlSettings
from server.home import ServerHome
run(ServerHome.open(Path(sys.argv[1])), ControlSettings(**json.loads(sys.argv[2])))
"""
START_SECONDS = 60.0


@dataclass(kw_only=True)
class Service:
    """A server's folder with its control service running."""

    home: ServerHome
    settings: ControlSettings
    process: subprocess.Popen[bytes]
    metrics: int | None

    @property
    def address(self) -> str:
        return self.settings.control_address

    @property
    def enrol(self) -> str:
        return self.settings.enrol_address

    def identity(self, name: str, role: Role = "node", **change: Any) -> Identity:
        return identity(self.home, name, role, address=self.address, **change)

    @contextmanager
    def client(self, name: str, role: Role = "node", **more: Any) -> Iterator[ControlClient]:
        with ControlClient(self.identity(name, role), **more) as opened:
            yield opened

    def fleet(self) -> FleetDatabase:
        return FleetDatabase(self.home.fleet_database)

    def log(self) -> list[dict[str, Any]]:
        text = (self.home.logs / "control.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def resident(self) -> int:
        """Return the bytes of memory that the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def identity(
    home: ServerHome, name: str, role: Role = "node", *, address: str, days: int = 30
) -> Identity:
    """Enroll a new key, as the service itself would."""
    key, authority = new_key(), home.authority()
    with FleetDatabase(home.fleet_database) as fleet:
        token = issue_token(
            fleet,
            name=name,
            role=role,
            address=address,
            fingerprint=authority.fingerprint,
            valid_seconds=60,
        )
        request = certificate_request(key, name)
        done = enroll(fleet, authority, secret=token.secret, csr=request, days=days)
    return Identity(
        address=address, ca=authority.certificate, certificate=done.certificate, key=key
    )


def code_of(found: grpc.RpcError) -> grpc.StatusCode:
    """Return how a call ended."""
    assert isinstance(found, grpc.Call)
    return found.code()


def make_home(folder: Path) -> ServerHome:
    return ServerHome.create(folder, ServerConfig(name="test"))


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [int(found.getsockname()[1]) for found in sockets]


def settings_for(home: ServerHome, **change: Any) -> ControlSettings:
    control, enrol = free_ports(2)
    base = replace(
        ControlSettings.of(home.config),
        control_port=control,
        enrol_port=enrol,
        metrics_port=0,
        control_address=f"127.0.0.1:{control}",
        enrol_address=f"127.0.0.1:{enrol}",
    )
    return replace(base, **change)


@contextmanager
def serving(home: ServerHome, **change: Any) -> Iterator[Service]:
    """Run the service for a folder; it is gone afterwards, whatever happened."""
    settings = settings_for(home, **change)
    command = [sys.executable, "-c", CHILD, str(home.path), json.dumps(asdict(settings))]
    with (home.logs / "child.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        ports = _wait_for(home.run / PORTS, process, home.logs / "child.log")
        yield Service(home=home, settings=settings, process=process, metrics=ports["metrics"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """Wait until the service says which ports it opened."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"the service ended with {process.returncode}: {log.read_text()[-2000:]}")
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            if found["pid"] == process.pid:
                return found
        time.sleep(0.02)
    pytest.fail("the service did not start in time")
