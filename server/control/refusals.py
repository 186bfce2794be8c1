"""How an error leaves the control service: a status, a stable code, and only words that may go."""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc

from shared.control.methods import ERROR_KEY, RETRY_KEY
from shared.errors import (
    AccessDenied,
    AdapterError,
    CertificateInvalid,
    EnrolmentRefused,
    FedSLMError,
    FleetError,
    InvalidValue,
    UsageError,
)
from shared.redact import scrub_exception

# Longer details are cut: they travel in a header.
_MAX_DETAILS = 400


class NotThere(FleetError):
    """Raised when a caller asks for something that does not exist."""


class Malformed(FleetError):
    """Raised for a request that is not what the method takes."""


class TooMany(FleetError):
    """Raised when a caller asks for too much.

    Args:
        message: what there was too much of.
        seconds: when to come again.
    """

    def __init__(self, message: str, *, seconds: float = 1.0) -> None:
        super().__init__(message, hint="Ask again later.")
        self.seconds = seconds


class TooSlow(FleetError):
    """Raised when a call took longer than it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a caller gets instead of an answer.

    Attributes:
        status: gRPC's status.
        details: words for people; empty where the error may hold what is not the caller's.
        code: stable code of the error.
        retry_after: seconds, for calls that may be made again.
    """

    status: grpc.StatusCode
    details: str
    code: str
    retry_after: float | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the trailing metadata."""
        found = ((ERROR_KEY, self.code),)
        if self.retry_after is None:
            return found
        return (*found, (RETRY_KEY, str(max(1, math.ceil(self.retry_after)))))


# The first that fits counts. Errors of other classes travel as their code alone.
_STATUS: tuple[tuple[type[FedSLMError], grpc.StatusCode], ...] = (
    (NotThere, grpc.StatusCode.NOT_FOUND),
    (Malformed, grpc.StatusCode.INVALID_ARGUMENT),
    (TooMany, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooSlow, grpc.StatusCode.DEADLINE_EXCEEDED),
    (EnrolmentRefused, grpc.StatusCode.PERMISSION_DENIED),
    (AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (CertificateInvalid, grpc.StatusCode.UNAUTHENTICATED),
    (InvalidValue, grpc.StatusCode.INVALID_ARGUMENT),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (AdapterError, grpc.StatusCode.FAILED_PRECONDITION),
)


def refusal_of(error: BaseException) -> Refusal:
    """Turn any error into what the caller may know.

    Guarantee:
        For an error that is not one of ours, or of ours but about the server's own state, nothing
        but a fixed code leaves.
    """
    code = scrub_exception(error)
    for kind, status in _STATUS:
        if isinstance(error, kind):
            after = error.seconds if isinstance(error, TooMany) else None
            details = _header(str(error))
            return Refusal(status=status, details=details, code=code, retry_after=after)
    return Refusal(
        status=grpc.StatusCode.INTERNAL, details="The server failed; its log says why.", code=code
    )


def _header(text: str) -> str:
    """Return text that fits a header: printable, on one line, cut."""
    return "".join(c if c.isprintable() else "?" for c in text)[:_MAX_DETAILS]
