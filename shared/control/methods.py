"""The methods of the control service by name, bound to their messages, and the limits of both ends.

Bound by hand from the descriptors: the server wraps every one of them in the same checks, and a
method that is in the interface but not served is noticed at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from shared.control.fedslm.control.v1 import control_pb2

PACKAGE = "fedslm.control.v1"
ENROLMENT = f"{PACKAGE}.Enrolment"

# Requests are small; what is large only ever flows from the server to the client.
MAX_REQUEST_BYTES = 65_536
MAX_RESPONSE_BYTES = 4_194_304
MAX_METADATA_BYTES = 8_192
CHUNK_BYTES = 262_144

# Trailing metadata of a refusal: the stable code of shared.errors, and when to come again.
ERROR_KEY = "fedslm-error"
RETRY_KEY = "fedslm-retry-after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of the interface.

    Attributes:
        service: full name of its service.
        name: its own name.
        request: class of the request.
        response: class of the response.
        streaming: whether the server answers with a stream.
    """

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    streaming: bool

    @property
    def path(self) -> str:
        """Return the name that travels: ``/package.Service/Method``."""
        return f"/{self.service}/{self.name}"


def _method(service: str, found: MethodDescriptor) -> Method:
    """Bind one method to its classes."""
    return Method(
        service=service,
        name=found.name,
        request=message_factory.GetMessageClass(found.input_type),
        response=message_factory.GetMessageClass(found.output_type),
        streaming=found.server_streaming,
    )


METHODS: Mapping[str, Method] = {
    f"{service.name}.{found.name}": _method(service.full_name, found)
    for service in control_pb2.DESCRIPTOR.services_by_name.values()
    for found in service.methods
}
