"""Real servers for tests: folders, processes, enrolled keys; nothing is left afterwards."""

from __future__ import annotations

import base64
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from server.fleetdb import FleetDatabase
from server.home import ServerConfig, ServerHome
from server.superlink import environment
from server.superlinkclient import pem_of
from server.superlinkdoor import MEDIA_TYPE, PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from server.supervisor import read_status
from simulations.upports import free_block

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A key, enrolled or not."""

    name: str
    key: EllipticCurvePrivateKey

    @property
    def public(self) -> bytes:
        """Return SubjectPublicKeyInfo, DER."""
        public = self.key.public_key()
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def pem(self) -> bytes:
        """Return the public key as Flower compares it."""
        return pem_of(self.public)

    def headers(self, *, at: datetime | None = None) -> dict[str, str]:
        """Return the headers of a signed call."""
        timestamp = (at or datetime.now(tz=UTC)).isoformat()
        signature = self.key.sign(timestamp.encode(), ECDSA(SHA256()))
        return {
            "content-type": MEDIA_TYPE,
            PUBLIC_KEY_HEADER: base64.b64encode(self.pem).decode(),
            SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            TIMESTAMP_HEADER: timestamp,
        }

    def write(self, path: Path) -> Path:
        """Write the private key as a stock SuperNode reads it."""
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        path.write_bytes(pem)
        path.chmod(0o600)
        return path


def stranger(name: str = "stranger") -> Identity:
    """Return a key that nobody enrolled."""
    return Identity(name=name, key=generate_private_key(SECP384R1()))


def enrolled(home: ServerHome, name: str) -> Identity:
    """Return a key that is enrolled as a node."""
    identity = stranger(name)
    database = FleetDatabase(home.fleet_database)
    token = database.new_token(name, valid_seconds=60.0)
    database.redeem(token, identity.public)
    return identity


def make_home(folder: Path, **settings: int | tuple[str, ...]) -> ServerHome:
    """Make a server's folder on ports that are free, and that no connection is given.

    A fleet beside this one cannot take them while a service is killed and started again.
    """
    ports = free_block(("fleet_port", "dashboard_port", "superlink_port", "control_port"))
    config = ServerConfig.model_validate({"name": "test", **ports, **settings})
    return ServerHome.create(folder / "server", config)


def client_of(home: ServerHome, *, port: int | None = None) -> httpx.Client:
    """Return an HTTP client of the front, or of another port."""
    address = f"https://localhost:{port or home.config.fleet_port}"
    trusted = ssl.create_default_context(cafile=str(home.ca_certificate))
    return httpx.Client(base_url=address, verify=trusted, timeout=20.0)


@contextmanager
def process(
    home: ServerHome, command: list[str], *, log: Path | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of a server with all that it starts; nothing is left of it afterwards."""
    variables = os.environ | environment(home) | {"PYTHONPATH": str(ROOT)}
    with (log or home.logs / "test.log").open("ab") as out:
        started = subprocess.Popen(
            command,
            env=variables,
            cwd=cwd or home.path,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        family = family_of(started.pid)
        started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(12)
        for one in family:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        started.kill()
        started.wait(5)


def supervisor_command(home: ServerHome) -> list[str]:
    """Return the command line of ``fedslm server run``."""
    code = "from simulations.server_cli import server_app; server_app()"
    return [sys.executable, "-c", code, "run", str(home.path)]


def server_command(*words: str) -> int:
    """Run ``fedslm server`` in this process; returns its exit code."""
    from simulations.server_cli import server_app

    try:
        server_app(list(words))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    return 0


def family_of(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        born = children.get(queue.pop(), [])
        found += born
        queue += born
    return found


def alive(pid: int) -> bool:
    """Tell whether a process is there and not only waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(what: str, check: Callable[[], bool], *, seconds: float) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            message = f"{what} did not happen within {seconds} s"
            raise AssertionError(message)
        time.sleep(0.1)


def wait_until_healthy(home: ServerHome, *, seconds: float = 90.0) -> None:
    """Wait until all processes of a server do their work."""
    wait_until("health", lambda: read_status(home)["state"] == "healthy", seconds=seconds)


def pid_of(home: ServerHome, name: str) -> int:
    """Return the pid of a service."""
    return int((home.run / f"{name}.pid").read_text())


def kill(pid: int) -> None:
    """Kill a process at once."""
    os.kill(pid, signal.SIGKILL)


def stock_node(
    home: ServerHome, identity: Identity, folder: Path, **config: str | int
) -> list[str]:
    """Return the command line of Flower's own SuperNode for an identity."""
    words = [f"{key.replace('_', '-')}={value!r}" for key, value in config.items()]
    return [
        str(Path(sys.executable).parent / "flower-supernode"),
        "--superlink",
        f"localhost:{home.config.fleet_port}",
        "--root-certificates",
        str(home.ca_certificate),
        "--auth-supernode-private-key",
        str(identity.write(folder / "node.key")),
        "--node-config",
        " ".join(words),
        "--port",
        str(free_block(("node_port",))["node_port"]),
    ]
