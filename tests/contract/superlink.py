"""A real SuperLink of the pinned Flower, on loopback: TLS, node authentication, a database."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    ListRunsResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StartRunRequest,
    StartRunResponse,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar

from shared.pki import Authority, new_key, openssh_form

APP = Path(__file__).parent / "fleetapp"
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
STARTED_SECONDS = 40.0


def wait_for(found: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.1)
    msg = f"{what} took more than {seconds} s"
    raise AssertionError(msg)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """End a process with everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@dataclass
class SuperLink:
    """A SuperLink with its executor, in one folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def prepare(self) -> None:
        """Write certificates and the executor's secret."""
        authority = Authority.create("contract", days=2)
        (self.folder / "ca.crt").write_bytes(authority.certificate)
        issued = authority.issue_server(["localhost", "127.0.0.1"], days=1)
        for name, data in {
            "server.crt": issued.certificate,
            "server.key": issued.key,
            "superexec.secret": b"s" * 32,
        }.items():
            path = self.folder / name
            path.write_bytes(data)
            path.chmod(0o600)

    @property
    def ca(self) -> Path:
        """Return the certificate of the authority."""
        return self.folder / "ca.crt"

    def environment(self, home: str) -> dict[str, str]:
        """Return the environment of one of Flower's processes."""
        (self.folder / home).mkdir(exist_ok=True)
        return {
            **os.environ,
            "FLWR_HOME": str(self.folder / home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def spawn(self, home: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process of ours in a group of its own; its output goes to a log."""
        with (self.folder / f"{home}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(home),
                cwd=self.folder,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_link(self) -> subprocess.Popen[bytes]:
        """Start the SuperLink and wait until it answers."""
        command = f"""--host 127.0.0.1 --port {self.port} --ssl-ca-certfile ca.crt
            --ssl-certfile server.crt --ssl-keyfile server.key --enable-supernode-auth
            --database state.db --isolation process --superexec-auth-secret-file superexec.secret
            --disable-runtime-dependency-installation"""
        process = self.spawn("link", str(BIN / "flower-superlink"), *command.split())
        wait_for(self.healthy, STARTED_SECONDS, "starting the SuperLink")
        return process

    def start_executor(self) -> subprocess.Popen[bytes]:
        """Start the executor of ServerApps."""
        command = f"""--runtime-api-address 127.0.0.1:{self.port} --root-certificates ca.crt
            --superexec-auth-secret-file superexec.secret"""
        return self.spawn("exec", str(BIN / "flower-superexec"), *command.split())

    def start_supernode(self, key: Path, partition: int) -> subprocess.Popen[bytes]:
        """Start a stock SuperNode."""
        config = f"partition-id={partition}"
        command = f"""--superlink 127.0.0.1:{self.port} --root-certificates ca.crt
            --auth-supernode-private-key {key} --port {free_port()} --node-config"""
        return self.spawn(
            f"supernode-{partition}", str(BIN / "flower-supernode"), *command.split(), config
        )

    def request(self, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, bytes]:
        """Make a request as the operator; there is no authentication."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=context, timeout=10
        )
        try:
            connection.request(method, path, body, {"content-type": "application/protobuf"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def healthy(self) -> bool:
        """Tell whether the SuperLink answers."""
        try:
            return self.request("/health", method="GET")[0] == 200
        except OSError:
            return False

    def make_key(self, name: str) -> Path:
        """Make the key of a node, in the form that both kinds of nodes read, and register it."""
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            PublicFormat,
            load_pem_private_key,
        )

        pem = new_key()
        path = self.folder / f"{name}.key"
        path.write_bytes(openssh_form(pem))
        path.chmod(0o600)
        public = load_pem_private_key(pem, None).public_key()
        request = RegisterNodeRequest(
            public_key=public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        status, body = self.request("/v1/control/register-node", request.SerializeToString())
        assert status == 200, body
        assert RegisterNodeResponse.FromString(body).node_id
        return path

    def start_run(self, **config: str | int | float) -> int:
        """Submit the tiny app."""
        with warnings.catch_warnings():
            # Flower's own use of pathspec.
            warnings.simplefilter("ignore", DeprecationWarning)
            bundle = build_fab_from_disk(APP)
        override = {}
        for key, value in {"out": str(self.rounds_file), **config}.items():
            kind = {str: "string", int: "sint64", float: "double"}[type(value)]
            override[key] = Scalar(**{kind: value})  # type: ignore[arg-type]
        request = StartRunRequest(
            fab=Fab(hash_str=sha256(bundle).hexdigest(), content=bundle), override_config=override
        )
        status, body = self.request("/v1/control/start-run", request.SerializeToString())
        assert status == 200, body
        return StartRunResponse.FromString(body).run_id

    def run_status(self, run_id: int) -> str:
        """Return how a run is or ended."""
        _, body = self.request("/v1/control/list-runs", ListRunsRequest().SerializeToString())
        status = ListRunsResponse.FromString(body).run_dict[run_id].status
        return status.sub_status or status.status

    @property
    def rounds_file(self) -> Path:
        """Return where the tiny app writes its rounds."""
        return self.folder / "rounds.jsonl"

    def rounds(self) -> list[dict[str, Any]]:
        """Return what the tiny app wrote so far."""
        if not self.rounds_file.exists():
            return []
        return [json.loads(line) for line in self.rounds_file.read_text().splitlines()]

    def wait_rounds(self, count: int, seconds: float) -> list[dict[str, Any]]:
        """Wait for so many rounds."""
        wait_for(lambda: len(self.rounds()) >= count, seconds, f"{count} rounds")
        return self.rounds()


@contextmanager
def superlink(folder: Path) -> Iterator[SuperLink]:
    """Run a SuperLink with its executor; end everything that was started."""
    link = SuperLink(folder)
    link.prepare()
    try:
        link.start_link()
        link.start_executor()
        yield link
    finally:
        for process in reversed(link.processes):
            end(process)
