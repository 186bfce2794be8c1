"""What is wrong between a server and its devices: codes 30 to 39 and 90 to 99."""

from __future__ import annotations

from shared.errors.root import FedSLMError


class ProtocolError(FedSLMError):
    """A message does not follow the protocol."""

    code = "protocol"
    exit_code = 30


class SchemaMismatch(ProtocolError):
    """Server and client disagree on plan, configuration, shapes or version."""

    code = "schema-mismatch"
    exit_code = 31


class QuorumNotReached(ProtocolError):
    """Too few clients answered."""

    code = "quorum"
    exit_code = 32


class ClientFailed(ProtocolError):
    """A client answered with an error code."""

    code = "client-failed"
    exit_code = 33


class SecureAggregationError(ProtocolError):
    """A message of the secure aggregation is not what an honest party would have sent."""

    code = "secure-aggregation"
    exit_code = 34


class FleetError(FedSLMError):
    """Raised when a server's or a device's folder, process or connection is not as it must be."""

    code = "fleet"
    exit_code = 90


class EnrolmentRefused(FleetError):
    """Raised for an enrolment token that is unknown, expired, used up or not for this server."""

    code = "enrolment-refused"
    exit_code = 91


class AccessDenied(FleetError):
    """Raised when a node or a person is not enrolled, was revoked, or may not do this."""

    code = "access-denied"
    exit_code = 92


class CertificateInvalid(FleetError):
    """Raised for a key, request or certificate that is damaged, expired or of another authority."""

    code = "certificate-invalid"
    exit_code = 93


class ServerUnreachable(FleetError):
    """Raised when the server does not answer, or something else answers in its place."""

    code = "server-unreachable"
    exit_code = 94


class AlreadyRunning(FleetError):
    """Raised when another process runs from the same folder or holds the same address."""

    code = "already-running"
    exit_code = 95
