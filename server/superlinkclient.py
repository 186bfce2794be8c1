"""Calls the SuperLink's Control API over loopback (docs/adr/0016).

Every private name of Flower used here is pinned by ``tests/contract/test_superlink_surface.py``.
Flower is imported inside functions: the keeper needs only the names.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from server.flowermessages import Answer, parsed
from server.home import ServerHome
from server.superlinkdoor import HEALTH, MEDIA_TYPE, SECRET_HEADER
from shared.errors import AccessDenied, FleetError, ProtocolError, ServerUnreachable

if TYPE_CHECKING:
    from google.protobuf.message import Message

_TIMEOUT = 15.0
_MOST_RUNS = 1000
_KEY_IN_USE = 23
_NODE_NOT_FOUND = 24
_RUN_NOT_FOUND = 16
_RUN_FINISHED = 18


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
            return parsed(answer, reply.content)
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
