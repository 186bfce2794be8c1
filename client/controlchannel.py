"""Connections to the control service: who the client is, how often it tries, what it believes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from client.controlerrors import error_of, retry_after
from shared.control.methods import MAX_RESPONSE_BYTES
from shared.errors import ProtocolError
from shared.pki import public_bytes
from shared.privatefiles import read_private

if TYPE_CHECKING:
    from client.home import DeviceHome

M = TypeVar("M", bound=Message)
Unary: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"

DEADLINE_SECONDS: Final = 20.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 20.0
# A call that was not made, or that may be made twice, is tried again.
_AGAIN: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """With what a client shows who it is, and by what it knows the server.

    Attributes:
        address: of the control service, ``host:port``.
        ca: certificate of the server's authority, PEM.
        certificate: the client's own, PEM.
        key: its private key, PEM.
    """

    address: str
    ca: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        """Return nothing of the key."""
        return f"Identity(address={self.address!r})"

    @classmethod
    def of(cls, home: DeviceHome) -> Identity:
        """Read the files of an enrolled device.

        Raises:
            FleetError: if one is missing or may be read by others.
        """
        return cls(
            address=home.config.control,
            ca=read_private(home.ca),
            certificate=read_private(home.certificate),
            key=read_private(home.key),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often a call is tried while the server is away or busy.

    Attributes:
        attempts: at most; one after the other without success.
        pause: waits between attempts; gets seconds.
    """

    attempts: int
    pause: Callable[[float], None] = time.sleep

    def wait(self, found: grpc.RpcError, failures: int, address: str) -> None:
        """Wait before another attempt, or give up.

        Args:
            found: how the last attempt failed.
            failures: attempts that failed one after the other.
            address: of the server, for the error.

        Raises:
            FedSLMError: what the failure means, if there is no use in another attempt.
        """
        code = found.code() if isinstance(found, grpc.Call) else None
        if code not in _AGAIN or failures >= self.attempts:
            raise error_of(found, address) from None
        self.pause(max(retry_after(found), back_off(failures)))


def call_again(
    call: Unary, request: Message, answer: type[M], *, seconds: float, patience: Patience, at: str
) -> M:
    """Make a call; again, with pauses, while the server is away or busy.

    Args:
        call: the method.
        request: what to ask.
        answer: class of the answer.
        seconds: that one attempt may take.
        patience: how often, with what pauses.
        at: the server's address, for errors.

    Raises:
        FedSLMError: what the server refused with, or ServerUnreachable.
        ProtocolError: if the answer is not one.
    """
    raw, failures = request.SerializeToString(), 0
    while True:
        try:
            return parse(call(raw, timeout=seconds), answer)
        except grpc.RpcError as found:
            failures += 1
            patience.wait(found, failures, at)


def back_off(failures: int) -> float:
    """Return seconds to wait after some failures: twice as long each time, a random part of it."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + secrets.randbelow(1001) / 2000)


def first_key(pem: bytes) -> bytes:
    """Return the first key of a file that holds the same key in two forms.

    Raises:
        CertificateInvalid: if it is not an ECDSA P-384 private key.
    """
    public_bytes(pem)
    head, end, _ = pem.partition(b"-----END PRIVATE KEY-----")
    return head + end + b"\n"


def open_channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.Channel:
    """Open a channel with bounds on what the server may send; it connects at the first call."""
    return grpc.secure_channel(
        address,
        credentials,
        options=[
            ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 20_000),
        ],
    )


def parse(raw: bytes, kind: type[M]) -> M:
    """Parse an answer.

    Raises:
        ProtocolError: if it is not one.
    """
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        msg = f"The server's answer is not a {kind.DESCRIPTOR.name}."
        raise ProtocolError(msg, hint="Is the server newer than this program?") from error
