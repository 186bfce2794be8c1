"""What a refusal of the control service means here: one of our own errors, with bounded words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc

from shared.control.methods import ERROR_KEY, RETRY_KEY
from shared.errors import (
    AccessDenied,
    FedSLMError,
    FleetError,
    PrivacyBudgetExhausted,
    ProtocolError,
    ServerUnreachable,
    all_errors,
)

_MAX_WORDS: Final = 400
_LONGEST_WAIT: Final = 60.0

_BY_STATUS: Final[dict[grpc.StatusCode, type[FedSLMError]]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: ServerUnreachable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerUnreachable,
    grpc.StatusCode.CANCELLED: ServerUnreachable,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.NOT_FOUND: FleetError,
    grpc.StatusCode.FAILED_PRECONDITION: FleetError,
}
# An error of the server's own state; which one is the operator's business.
_GENERIC: Final = {FedSLMError.code, FleetError.code}


def error_of(found: grpc.RpcError, address: str) -> FedSLMError:
    """Turn a failed call into our error: by the server's code if it sent one, else by status.

    Guarantee:
        Words of the server are cut, on one line and printable; they are shown, never acted on.
    """
    status, words = _status(found), _printable(_details(found))
    if status in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        msg = f"The control service at {address} does not answer, or is not of this authority."
        hint = "Check the network, the server and this device's clock; then try again."
        return ServerUnreachable(msg, hint=hint)
    msg = words or f"The control service at {address} refused (status={status.name})."
    known = {cls.code: cls for cls in all_errors() if cls is not PrivacyBudgetExhausted}
    code = _trailing(found).get(ERROR_KEY, "")
    if code in known and code not in _GENERIC:
        return known[code](msg)
    return _BY_STATUS.get(status, ProtocolError)(msg)


def retry_after(found: grpc.RpcError) -> float:
    """Return for how many seconds the server wants to be left alone; 0 if it did not say."""
    text = _trailing(found).get(RETRY_KEY, "")
    return min(float(text), _LONGEST_WAIT) if text.isascii() and text.isdecimal() else 0.0


def _status(found: grpc.RpcError) -> grpc.StatusCode:
    """Return the status of a failed call."""
    code: Any = getattr(found, "code", None)
    status = code() if callable(code) else None
    return status if isinstance(status, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _details(found: grpc.RpcError) -> str:
    """Return the words of a failed call."""
    details: Any = getattr(found, "details", None)
    return str(details() or "") if callable(details) else ""


def _trailing(found: grpc.RpcError) -> dict[str, str]:
    """Return the text of the trailing metadata."""
    read: Any = getattr(found, "trailing_metadata", None)
    pairs: Iterable[tuple[str, Any]] = (read() or ()) if callable(read) else ()
    return {str(key): value for key, value in pairs if isinstance(value, str)}


def _printable(text: str) -> str:
    """Return text on one line, cut."""
    return "".join(c if c.isprintable() else " " for c in text)[:_MAX_WORDS]
