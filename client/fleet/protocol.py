"""The calls of Flower 1.41's Fleet protocol; the one module that knows its paths and statuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from client.fleet import fleet_pb2 as pb
from client.fleet.limits import DEFAULT_LIMITS, MIB, Limits
from client.fleet.messages import Answered, Question, RunInfo, object_tree, read_question, read_run
from client.fleet.transport import Answer, Connection
from shared.errors import AccessDenied, SchemaMismatch, ServerUnreachable

PREFIX: Final = "/v1/fleet/"
# What one call may answer beside an object.
_MAX_ANSWER: Final = 16 * MIB
_ROOM: Final = 4096

# Flower's numbers of errors (flwr.supercore.error), and what HTTP says.
_NOT_ACTIVATED: Final = 2004
_RUN_NOT_RUNNING: Final = 2007
_RUN_UNKNOWN: Final = 2008
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_PRECONDITION: Final = 412
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

_Reply = TypeVar("_Reply", bound=ProtobufMessage)


class RunOver(Exception):
    """The run that a call was about is not running any more, or never was for this node."""


class NotYet(Exception):
    """An object of a message has not arrived at the server yet."""


class Post(Protocol):
    """Sends a request; :class:`client.fleet.transport.Connection` does."""

    def post(self, path: str, body: bytes, *, max_answer: int = ...) -> Answer:
        """Send a request and return the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What the server wants of an answer.

    Attributes:
        session_id: of the upload; it ends after a while.
        wanted: names of the objects that the server does not have.
    """

    session_id: str
    wanted: tuple[str, ...]


LOST_UPLOAD: Final = Upload(session_id="", wanted=())
"""Stands for the session of an announcement whose answer was lost; objects still go through."""


class FleetClient:
    """The calls, one method each.

    All of them raise :class:`ServerUnreachable` if the server does not answer or is busy,
    :class:`AccessDenied` if it does not accept this node, and :class:`SchemaMismatch` if it answers
    something else than the protocol says.

    Args:
        connection: to the server.
        limits: bounds on what is read.
    """

    def __init__(self, connection: Connection | Post, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._connection = connection
        self._limits = limits

    def activate(self, public_key: bytes, *, heartbeat_seconds: float) -> int:
        """Join; return the number that the server knows this node by.

        Raises:
            AccessDenied: if the key is not registered, or another node with it is online.
        """
        request = pb.ActivateNodeRequest(
            public_key=public_key, heartbeat_interval=heartbeat_seconds
        )
        found = self._call("activate-node", request, pb.ActivateNodeResponse())
        if found.node_id == 0:
            msg = "The server gave this node no number."
            raise SchemaMismatch(msg)
        return found.node_id

    def deactivate(self, node_id: int) -> None:
        """Leave until the next activation."""
        request = pb.DeactivateNodeRequest(node_id=node_id)
        self._call("deactivate-node", request, pb.DeactivateNodeResponse())

    def heartbeat(self, node_id: int, *, heartbeat_seconds: float) -> bool:
        """Say that this node lives; return False if the server does not know it."""
        request = pb.SendNodeHeartbeatRequest(
            node=pb.Node(node_id=node_id), heartbeat_interval=heartbeat_seconds
        )
        return self._call("send-node-heartbeat", request, pb.SendNodeHeartbeatResponse()).success

    def pull_message(self, node_id: int) -> Question | None:
        """Take the next message, if there is one; the server gives each message once."""
        request = pb.PullMessagesRequest(node=pb.Node(node_id=node_id))
        found = self._call("pull-messages", request, pb.PullMessagesResponse())
        if not found.messages_list:
            return None
        return read_question(found.messages_list[0], node_id=node_id)

    def pull_object(self, node_id: int, question: Question, name: str) -> bytes:
        """Return one object of a message.

        Raises:
            NotYet: if the server waits for it itself.
            RunOver: if the run has ended.
        """
        request = pb.PullObjectRequest(
            node=pb.Node(node_id=node_id), run_id=question.run_id, object_id=name
        )
        found = self._call("pull-object", request, pb.PullObjectResponse(), largest=True)
        if not found.object_found:
            raise RunOver
        if not found.object_available:
            raise NotYet
        return found.object_content

    def confirm(self, node_id: int, question: Question) -> None:
        """Say that all objects of a message have arrived; the server may delete them.

        Raises:
            RunOver: if the run has ended.
        """
        request = pb.ConfirmMessageReceivedRequest(
            node=pb.Node(node_id=node_id),
            run_id=question.run_id,
            message_object_id=question.message_id,
        )
        self._call("confirm-message-received", request, pb.ConfirmMessageReceivedResponse())

    def run(self, node_id: int, run_id: int) -> RunInfo:
        """Return a run and its configuration.

        Raises:
            RunOver: if it is not running, or this node has no part in it.
        """
        request = pb.GetRunRequest(node=pb.Node(node_id=node_id), run_id=run_id)
        found = read_run(self._call("get-run", request, pb.GetRunResponse()).run)
        if found.run_id != run_id:
            msg = "The server described another run than was asked for."
            raise SchemaMismatch(msg)
        return found

    def push_message(self, node_id: int, answered: Answered, *, seconds: float) -> Upload:
        """Announce an answer; announcing it again is harmless.

        The second time, the server may want nothing although it waits for the objects of the first:
        send them with :data:`LOST_UPLOAD`.

        Args:
            node_id: this node.
            answered: the answer.
            seconds: how long the work took.

        Raises:
            RunOver: if the run has ended.
        """
        request = pb.PushMessagesRequest(
            node=pb.Node(node_id=node_id),
            messages_list=[answered.message],
            message_object_trees=[object_tree(answered.tree)],
            clientapp_runtime_list=[seconds],
        )
        found = self._call("push-messages", request, pb.PushMessagesResponse())
        return Upload(session_id=found.session_id, wanted=tuple(found.objects_to_push))

    def push_object(
        self, node_id: int, run_id: int, upload: Upload, name: str, content: bytes
    ) -> bool:
        """Send one object of an answer; return False if the upload is not valid any more.

        Raises:
            RunOver: if the run has ended.
        """
        request = pb.PushObjectRequest(
            node=pb.Node(node_id=node_id),
            run_id=run_id,
            object_id=name,
            object_content=content,
            session_id=upload.session_id,
        )
        return self._call("push-object", request, pb.PushObjectResponse()).stored

    def _call(
        self, name: str, request: ProtobufMessage, reply: _Reply, *, largest: bool = False
    ) -> _Reply:
        """Make one call and read the reply."""
        body = request.SerializeToString(deterministic=True)
        most = self._limits.object_bytes + _ROOM if largest else _MAX_ANSWER
        found = self._connection.post(PREFIX + name, body, max_answer=most)
        _require_ok(found, name)
        try:
            reply.ParseFromString(found.body)
        except DecodeError as error:
            msg = f"The server's answer to {name} cannot be read."
            raise SchemaMismatch(msg, hint="Does it run Flower 1.41?") from error
        return reply


_DENIED: Final[Mapping[int, str]] = {
    _UNAUTHORIZED: "The server does not accept this device's key or clock.",
    _FORBIDDEN: "This device is not enrolled, or was revoked.",
}


def _require_ok(found: Answer, name: str) -> None:
    """Turn a status into what it means."""
    if found.status == _OK:
        return
    if found.code in {_RUN_NOT_RUNNING, _RUN_UNKNOWN}:
        raise RunOver
    if found.status in _DENIED:
        raise AccessDenied(_DENIED[found.status], hint="Ask the operator, or enroll again.")
    if found.status == _PRECONDITION and found.code == _NOT_ACTIVATED:
        msg = "The server does not let this device join."
        raise AccessDenied(
            msg, hint="Its key is not registered, or a node with the same key is still online."
        )
    if found.status in _BUSY:
        msg = f"The server cannot take {name} now (status={found.status})."
        raise ServerUnreachable(msg, hint="It is tried again.")
    msg = f"The server answered {name} with status={found.status}, code={found.code}."
    raise SchemaMismatch(msg, hint="Is it the server's front, and does it run Flower 1.41?")
