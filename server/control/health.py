"""Health and reflection: gRPC's own services, behind the same checks as ours.

Health is answered for everyone who may connect, one question at a time (``Check``; ``Watch`` would
hold a call open for each watcher and is left out, which clients take for "no news").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from server.control.identity import Caller
from server.control.refusals import NotThere
from shared.control.methods import Method

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

CHECK = Method(
    service=HEALTH,
    name="Check",
    request=health_pb2.HealthCheckRequest,
    response=health_pb2.HealthCheckResponse,
    streaming=False,
)

Status = health_pb2.HealthCheckResponse


class Health:
    """The service ``Health``.

    Args:
        services: full names of what is served.
        good: tells whether the service can do its work.
    """

    def __init__(self, services: Sequence[str], good: Callable[[], bool]) -> None:
        self._services = {"", *services}
        self._good = good

    def check(
        self, request: health_pb2.HealthCheckRequest, caller: Caller
    ) -> health_pb2.HealthCheckResponse:
        """Return whether a service, or with an empty name all of them, is served.

        Raises:
            NotThere: for a service that is not known.
        """
        del caller
        if request.service not in self._services:
            msg = "there is no service of this name."
            raise NotThere(msg)
        status = Status.SERVING if self._good() else Status.NOT_SERVING
        return Status(status=status)


def reflection_endpoint(
    services: Sequence[str],
) -> tuple[Method, Callable[[Any, Caller], Iterator[Message]]] | None:
    """Return the method of reflection and what it does; None if the package is not installed.

    Args:
        services: full names of what is served.
    """
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ImportError:
        return None
    servicer = reflection.ReflectionServicer(services)
    method = Method(
        service=REFLECTION,
        name="ServerReflectionInfo",
        request=reflection_pb2.ServerReflectionRequest,
        response=reflection_pb2.ServerReflectionResponse,
        streaming=True,
    )

    # The servicer does not look at the call's context.
    context: Any = None

    def answer(
        request: reflection_pb2.ServerReflectionRequest, caller: Caller
    ) -> Iterator[Message]:
        """Answer one question about the interface."""
        del caller
        yield from servicer.ServerReflectionInfo([request], context)

    return method, answer
