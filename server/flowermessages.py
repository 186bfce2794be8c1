"""What is read of Flower's own messages, and how its Grid is told to fetch them (docs/adr/0016).

Every private name of Flower used here is pinned by ``tests/contract/test_superlink_surface.py``.
Flower is imported inside functions: the front needs only the names.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar

from shared.errors import FedSLMError, ProtocolError

if TYPE_CHECKING:
    from google.protobuf.message import Message

_FIRST_PULL_PAUSE = 0.02
_LONGEST_PULL_PAUSE = 2.0

Answer = TypeVar("Answer", bound="Message")


def activated_node(answer: bytes) -> int:
    """Return Flower's number for a node from the SuperLink's answer to its activation.

    Raises:
        ProtocolError: if it cannot be read.
    """
    from flwr.proto.fleet_pb2 import ActivateNodeResponse

    return parsed(ActivateNodeResponse(), answer).node_id


def beating_node(request: bytes) -> int:
    """Return which node a heartbeat is for; the SuperLink checks it against the key.

    Raises:
        ProtocolError: if it cannot be read.
    """
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

    return parsed(SendNodeHeartbeatRequest(), request).node.node_id


def speaks_for_itself(request: bytes) -> bool:
    """Tell whether all messages that a node pushes are its own, which Flower does not check.

    Raises:
        ProtocolError: if it cannot be read.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest

    pushed = parsed(PushMessagesRequest(), request)
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


def parsed(into: Answer, data: bytes) -> Answer:
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
