"""The one place that works around what Flower 1.41 has no public way for (docs/adr/0016).

Four things: starting the SuperLink with a door in front of its Control API, which in the open
source has no authentication of its own; starting the executor of ServerApps; calling the Control
API over loopback; and the pause after which the Grid asks again for pieces of a reply.
``tests/contract/test_superlink_surface.py`` pins every private name used here. Flower is imported
inside functions: the front and the supervisor need only the names.
"""

from __future__ import annotations

import functools
import hmac
import os
import ssl
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from server.freshtls import context_factory
from server.home import ServerHome
from shared.errors import AccessDenied, FedSLMError, FleetError, ProtocolError, ServerUnreachable

if TYPE_CHECKING:
    from google.protobuf.message import Message

FLEET_CALLS: Final = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What devices may call. Nodes are registered by the operator's side alone."""

RUNTIME_CALLS: Final = frozenset(
    f"/v1/runtime/{call}"
    for call in (
        "acquire-task",
        "send-task-heartbeat",
        "pull-task-input",
        "push-task-output",
        "push-object",
        "pull-object",
        "confirm-message-received",
        "push-messages",
        "pull-messages",
        "get-nodes",
        "push-logs",
    )
)
"""What ServerApps and their executor need; guarded by the executor's secret and task tokens."""

HEALTH: Final = "/health"
SECRET_HEADER: Final = "fedslm-control"  # noqa: S105 - the name of a header
PUBLIC_KEY_HEADER: Final = "flwr-public-key"
SIGNATURE_HEADER: Final = "flwr-signature"
TIMESTAMP_HEADER: Final = "flwr-timestamp"
CLOCK_AHEAD_SECONDS: Final = 5.0
CLOCK_BEHIND_SECONDS: Final = 305.0
MEDIA_TYPE: Final = "application/protobuf"

_TIMEOUT = 15.0
_FIRST_PULL_PAUSE = 0.02
_LONGEST_PULL_PAUSE = 2.0
_MOST_RUNS = 1000
_KEY_IN_USE = 23
_NODE_NOT_FOUND = 24
_RUN_NOT_FOUND = 16
_RUN_FINISHED = 18

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Answer = TypeVar("Answer", bound="Message")


class ControlDoor:
    """ASGI middleware: all but the calls of nodes and ServerApps needs the control secret.

    Anything without it is answered with an empty 404, as if there were nothing.

    Args:
        app: the SuperLink.
        secret: what the header :data:`SECRET_HEADER` must hold.
    """

    def __init__(self, app: AsgiApp, secret: bytes) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through or refuse it."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._open(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close"})

    def _open(self, scope: Scope) -> bool:
        """Tell whether a call may go through."""
        path, method = scope["path"], scope["method"]
        if method == "POST" and (path in FLEET_CALLS or path in RUNTIME_CALLS):
            return True
        if path == HEALTH and method in {"GET", "HEAD"}:
            return True
        shown = [value for name, value in scope["headers"] if name == SECRET_HEADER.encode()]
        return len(shown) == 1 and hmac.compare_digest(shown[0], self._secret)


def serve(home: ServerHome) -> None:
    """Run the SuperLink of a folder in this process until it is told to stop.

    It listens on loopback alone, with the server's certificate, so that nothing else on the
    machine can pose as it. Bundles install nothing, and nothing is reported to anybody.
    """
    os.environ.update(environment(home))
    import uvicorn
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    key, certificate, ca = (
        str(path) for path in (home.server_key, home.server_certificate, home.ca_certificate)
    )
    config = SuperLinkLifespanConfig(
        control_address=home.config.superlink_address,
        health_server_address=None,
        host="127.0.0.1",
        port=home.config.superlink_port,
        insecure=False,
        certificates=(
            home.ca_certificate.read_bytes(),
            home.server_certificate.read_bytes(),
            home.server_key.read_bytes(),
        ),
        superexec_auth_secret=home.read_secret(home.superexec_secret),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=ca,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        database=str(home.superlink_database),
        isolation="process",
        runtime_dependency_install=False,
    )
    app = cast("AsgiApp", create_app(config, SuperLinkLifespan))
    uvicorn.run(
        ControlDoor(app, home.read_secret(home.control_secret)),
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_keyfile=key,
        ssl_certfile=certificate,
        ssl_context_factory=context_factory(home),
        timeout_graceful_shutdown=2,
    )


def environment(home: ServerHome) -> dict[str, str]:
    """Return what Flower's processes need in their environment.

    The command of a ServerApp is looked up in ``PATH``; from a source tree the packages are found
    by ``PYTHONPATH``, because these processes run in the server's folder.
    """
    scripts = str(Path(sys.executable).parent)
    found = {
        "FLWR_HOME": str(home.flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_LOG_LEVEL": "WARNING",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
    }
    source = str(Path(__file__).resolve().parents[1])
    if source not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        found["PYTHONPATH"] = source
    return found


def superlink_command(home: ServerHome) -> list[str]:
    """Return the command line of the SuperLink."""
    return [sys.executable, "-m", "server.superlink", str(home.path)]


def superexec_command(home: ServerHome) -> list[str]:
    """Return the command line of the executor of ServerApps."""
    return [
        str(Path(sys.executable).parent / "flower-superexec"),
        "--runtime-api-address",
        home.config.superlink_address,
        "--root-certificates",
        str(home.ca_certificate),
        "--superexec-auth-secret-file",
        str(home.superexec_secret),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerNode:
    """A node as the SuperLink knows it.

    Attributes:
        node_id: Flower's number for it.
        public_key: SubjectPublicKeyInfo, DER.
        status: "registered", "online", "offline" or "unregistered".
    """

    node_id: int
    public_key: bytes
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerRun:
    """A run as the SuperLink knows it.

    Attributes:
        run_id: Flower's number for it.
        status: "pending", "starting", "running" or "finished".
        outcome: of a finished run "completed", "failed" or "stopped", else "".
    """

    run_id: int
    status: str
    outcome: str


class SuperLinkClient:
    """Calls the Control API over loopback.

    Args:
        address: ``host:port``.
        ca: certificate of the authority that signed the SuperLink's, a PEM file.
        secret: what the SuperLink's door wants to see.
    """

    def __init__(self, address: str, ca: Path, secret: bytes) -> None:
        import httpx

        context = ssl.create_default_context(cafile=str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._http = httpx.Client(
            base_url=f"https://{address}",
            verify=context,
            timeout=_TIMEOUT,
            trust_env=False,
            headers={"content-type": MEDIA_TYPE, SECRET_HEADER: secret.decode("ascii")},
        )

    @classmethod
    def of(cls, home: ServerHome) -> SuperLinkClient:
        """Return a client of the SuperLink of a folder."""
        secret = home.read_secret(home.control_secret)
        return cls(home.config.superlink_address, home.ca_certificate, secret)

    def __enter__(self) -> SuperLinkClient:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def healthy(self) -> bool:
        """Tell whether the SuperLink answers."""
        import httpx

        try:
            return self._http.get(HEALTH, timeout=2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def register_node(self, public_key: bytes) -> int | None:
        """Let a key call as a node.

        Args:
            public_key: SubjectPublicKeyInfo of an elliptic-curve key, DER.

        Returns:
            Flower's number for the node; None if the key was registered already.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest, RegisterNodeResponse

        request = RegisterNodeRequest(public_key=pem_of(public_key))
        try:
            return self._call("register-node", request, RegisterNodeResponse()).node_id
        except _RefusedByFlower as error:
            if error.flower_code == _KEY_IN_USE:
                return None
            raise

    def unregister_node(self, node_id: int) -> None:
        """Shut a node out; one that is not there is left alone."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest, UnregisterNodeResponse

        request = UnregisterNodeRequest(node_id=node_id)
        try:
            self._call("unregister-node", request, UnregisterNodeResponse())
        except _RefusedByFlower as error:
            if error.flower_code != _NODE_NOT_FOUND:
                raise

    def nodes(self) -> tuple[FlowerNode, ...]:
        """Return all registered nodes."""
        from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse

        found = self._call("list-nodes", ListNodesRequest(), ListNodesResponse())
        return tuple(
            FlowerNode(node_id=n.node_id, public_key=der_of(n.public_key), status=n.status)
            for n in found.nodes_info
            if n.status != "unregistered"
        )

    def start_run(self, bundle: bytes, run_config: Mapping[str, str]) -> int:
        """Submit a bundle; returns Flower's number for the run.

        Raises:
            FleetError: if the SuperLink refuses it.
        """
        import hashlib

        from flwr.proto.control_pb2 import StartRunRequest, StartRunResponse
        from flwr.proto.fab_pb2 import Fab
        from flwr.proto.transport_pb2 import Scalar

        digest = hashlib.sha256(bundle).hexdigest()
        request = StartRunRequest(
            fab=Fab(hash_str=digest, content=bundle),
            override_config={key: Scalar(string=value) for key, value in run_config.items()},
        )
        run_id = self._call("start-run", request, StartRunResponse()).run_id
        if run_id == 0:
            msg = f"The SuperLink did not take the bundle {digest[:12]}."
            raise FleetError(msg, hint="Its log says why: logs/superlink.log.")
        return run_id

    def stop_run(self, run_id: int) -> None:
        """Stop a run; one that is over or unknown is left alone."""
        from flwr.proto.control_pb2 import StopRunRequest, StopRunResponse

        try:
            self._call("stop-run", StopRunRequest(run_id=run_id), StopRunResponse())
        except _RefusedByFlower as error:
            if error.flower_code not in {_RUN_NOT_FOUND, _RUN_FINISHED}:
                raise

    def runs(self) -> tuple[FlowerRun, ...]:
        """Return the newest thousand runs."""
        from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

        found = self._call("list-runs", ListRunsRequest(limit=_MOST_RUNS), ListRunsResponse())
        return tuple(
            FlowerRun(run_id=run_id, status=run.status.status, outcome=run.status.sub_status)
            for run_id, run in sorted(found.run_dict.items())
        )

    def _call(self, name: str, request: Message, answer: Answer) -> Answer:
        """Make one Control call.

        Raises:
            ServerUnreachable: if the SuperLink does not answer.
            FleetError: if it refuses.
        """
        import httpx

        try:
            reply = self._http.post(f"/v1/control/{name}", content=request.SerializeToString())
        except httpx.HTTPError as error:
            msg = f"The SuperLink does not answer ({type(error).__name__})."
            raise ServerUnreachable(msg, hint="Is the server running?") from error
        if reply.status_code == httpx.codes.NOT_FOUND and not reply.content:
            msg = "The SuperLink refuses the control secret."
            raise AccessDenied(msg, hint="Is it the server of this folder?")
        if reply.status_code != httpx.codes.OK:
            raise _RefusedByFlower(name, reply.status_code, _code(reply))
        try:
            return _parsed(answer, reply.content)
        except ProtocolError as error:
            msg = f"The SuperLink's answer to {name} cannot be read."
            raise ServerUnreachable(msg, hint="Is another Flower installed?") from error


class _RefusedByFlower(FleetError):
    """Carries the code of Flower's own error."""

    def __init__(self, name: str, status: int, flower_code: int) -> None:
        msg = f"The SuperLink refuses {name} (status {status}, code {flower_code})."
        super().__init__(msg, hint="Its log says why: logs/superlink.log.")
        self.flower_code = flower_code


def _code(reply: Any) -> int:  # noqa: ANN401 - httpx is imported late
    """Return the code in Flower's JSON error, 0 if there is none."""
    try:
        return int(reply.json()["code"])
    except (ValueError, KeyError, TypeError):
        return 0


def activated_node(answer: bytes) -> int:
    """Return Flower's number for a node from the SuperLink's answer to its activation.

    Raises:
        ProtocolError: if it cannot be read.
    """
    from flwr.proto.fleet_pb2 import ActivateNodeResponse

    return _parsed(ActivateNodeResponse(), answer).node_id


def beating_node(request: bytes) -> int:
    """Return which node a heartbeat is for; the SuperLink checks it against the key.

    Raises:
        ProtocolError: if it cannot be read.
    """
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

    return _parsed(SendNodeHeartbeatRequest(), request).node.node_id


def speaks_for_itself(request: bytes) -> bool:
    """Tell whether all messages that a node pushes are its own, which Flower does not check.

    Raises:
        ProtocolError: if it cannot be read.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest

    pushed = _parsed(PushMessagesRequest(), request)
    sources = {message.metadata.src_node_id for message in pushed.messages_list}
    return sources == {pushed.node.node_id}


def pull_without_delay() -> None:
    """Let Flower's Grid ask for missing pieces of a reply after 20 ms; it would wait a second.

    A node announces its reply before it sends the pieces, so that the Grid often comes too early.
    The pause doubles to two seconds. Tries are not counted, as a slow line may need many; the Grid
    gives up after two hours, long after the deadline of a round.
    """
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.superlink.grid import http_grid

    quick = functools.partial(
        inflatable_utils.pull_objects,
        initial_backoff=_FIRST_PULL_PAUSE,
        backoff_cap=_LONGEST_PULL_PAUSE,
        max_tries_per_object=None,
    )
    vars(http_grid)["pull_objects"] = quick


def is_unreadable(error: Exception) -> bool:
    """Tell whether pulling a reply failed because of what the reply is made of.

    Flower raises whatever the parsers of its objects raise; trouble on the way to the SuperLink,
    which has other types, is no fault of the node.
    """
    import httpx
    from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
    from google.protobuf.message import DecodeError

    if isinstance(error, httpx.HTTPError | FedSLMError | OSError):
        return False
    kinds = (
        UnexpectedObjectContentError,
        DecodeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RecursionError,
    )
    return isinstance(error, kinds)


def _parsed(into: Answer, data: bytes) -> Answer:
    """Parse a protobuf message.

    Raises:
        ProtocolError: if it cannot be read.
    """
    from google.protobuf.message import DecodeError

    try:
        into.ParseFromString(data)
    except DecodeError as error:
        msg = f"A message is no {type(into).__name__}."
        raise ProtocolError(msg) from error
    return into


def pem_of(public_key: bytes) -> bytes:
    """Return a public key as Flower compares it: PEM of SubjectPublicKeyInfo."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_der_public_key,
    )

    key = load_der_public_key(public_key)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def der_of(pem: bytes) -> bytes:
    """Return a public key as we compare it: DER of SubjectPublicKeyInfo."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_public_key,
    )

    key = load_pem_public_key(pem)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


if __name__ == "__main__":
    serve(ServerHome.open(Path(sys.argv[1])))
