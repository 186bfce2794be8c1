"""HTTPS to one server, whose certificate our own authority issued; standard library only."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.fleet.identity import NodeIdentity, ServerClock
from client.fleet.limits import MIB
from shared.errors import CertificateInvalid, FleetError, InvalidValue, ServerUnreachable

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 300.0
MAX_ERROR: Final = 64 << 10
_MEDIA: Final = "application/protobuf"
_PIECE: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the server is and who vouches for it.

    Attributes:
        host: name or address, as in the server's certificate.
        port: TCP port.
        ca: certificate of the authority, a PEM file; None for plain HTTP, which only this host's
            own addresses may be spoken to with, and only in tests.
    """

    host: str
    port: int
    ca: Path | None

    def __post_init__(self) -> None:
        """Refuse plain HTTP to anywhere but this host.

        Raises:
            FleetError: if there is no authority and the host is not a loopback address.
        """
        if self.ca is None and not _is_loopback(self.host):
            msg = "Plain HTTP is spoken only on a loopback address."
            raise FleetError(msg, hint="Give the certificate of the server's authority.")


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[host]:port``.

    Raises:
        InvalidValue: if it is neither.
    """
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not (colon and bare and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        msg = f"Found address={address!r}."
        raise InvalidValue(msg, hint="Expected host:port.")
    return bare, int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server answered.

    Attributes:
        status: of HTTP.
        body: the answer.
        code: Flower's number of an error, if it gave one.
    """

    status: int
    body: bytes = field(repr=False)
    code: int | None = None


class Connection:
    """One connection, kept open between requests and opened again when it broke.

    One thread uses it; another may :meth:`abort` it.

    Args:
        endpoint: the server.
        identity: the device's key.
        clock: shared by all connections of a node.
        read_seconds: how long the server may be silent.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        identity: NodeIdentity,
        clock: ServerClock,
        *,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._read_seconds = read_seconds
        self._endpoint = endpoint
        self._identity = identity
        self._clock = clock
        self._tls = None if endpoint.ca is None else _context(endpoint.ca)
        self._http: http.client.HTTPConnection | None = None
        self._aborted = False

    def post(self, path: str, body: bytes, *, max_answer: int = 16 * MIB) -> Answer:
        """Send a request and read the answer.

        A request that is refused because the device's clock is wrong is sent again with the
        server's time.

        Args:
            path: of the URL.
            body: a serialised protobuf message.
            max_answer: bytes of the answer that are read at most.

        Raises:
            ServerUnreachable: if the server does not answer, or not as an HTTP server would.
            CertificateInvalid: if its certificate is not one that our authority vouches for now.
        """
        answer, reset = self._exchange(path, body, max_answer)
        if answer.status == http.client.UNAUTHORIZED and reset:
            answer, _ = self._exchange(path, body, max_answer)
        return answer

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def abort(self) -> None:
        """End a request that runs in another thread, and refuse all further ones."""
        self._aborted = True
        http_connection = self._http
        if http_connection is not None and http_connection.sock is not None:
            with suppress(OSError):
                # Not SSLSocket's own: it would take TLS away from under the other thread.
                socket.socket.shutdown(http_connection.sock, socket.SHUT_RDWR)

    def _exchange(self, path: str, body: bytes, max_answer: int) -> tuple[Answer, bool]:
        """Send a request, once more if a kept connection turns out to be closed."""
        kept = self._http is not None
        try:
            return self._once(path, body, max_answer)
        except ssl.SSLCertVerificationError as error:
            self.close()
            msg = f"The server's certificate is not accepted: {error.verify_message}."
            raise CertificateInvalid(
                msg, hint="Another server answers, or its certificate must be renewed."
            ) from error
        except (http.client.HTTPException, OSError) as error:
            self.close()
            if kept and not isinstance(error, TimeoutError) and not self._aborted:
                return self._exchange(path, body, max_answer)
            msg = f"The server does not answer ({_reason(error)})."
            raise ServerUnreachable(msg, hint="Is it up, and is the network?") from error

    def _once(self, path: str, body: bytes, max_answer: int) -> tuple[Answer, bool]:
        """Send a request over the open connection, or a new one."""
        connection = self._opened()
        headers = {
            "content-type": _MEDIA,
            "accept": _MEDIA,
            "accept-encoding": "identity",
            **self._identity.headers(self._clock.now()),
        }
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        limit = max_answer if response.status == http.client.OK else MAX_ERROR
        data = _read(response, limit)
        if response.will_close or not response.isclosed():
            self.close()
        reset = self._clock.learn(response.headers.get("date"))
        return Answer(status=response.status, body=data, code=_code(response.status, data)), reset

    def _opened(self) -> http.client.HTTPConnection:
        """Return the open connection."""
        if self._aborted:
            msg = "the node is stopping"
            raise ConnectionAbortedError(msg)
        if self._http is None:
            host, port = self._endpoint.host, self._endpoint.port
            fresh: http.client.HTTPConnection
            if self._tls is None:
                fresh = http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
            else:
                fresh = http.client.HTTPSConnection(
                    host, port, timeout=CONNECT_SECONDS, context=self._tls
                )
            self._http = fresh
            fresh.connect()
            fresh.sock.settimeout(self._read_seconds)
        return self._http


def _context(ca: Path) -> ssl.SSLContext:
    """Return what a TLS connection must be: verified by one authority, for the right host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        msg = f"{ca.name} holds no certificate that can be read."
        raise CertificateInvalid(msg, hint="Enroll the device again.") from error
    return context


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    """Read an answer within a size and a time."""
    end = time.monotonic() + ANSWER_SECONDS
    pieces, size = [], 0
    while piece := response.read(_PIECE):
        size += len(piece)
        if size > limit:
            msg = "the answer is too long"
            raise http.client.HTTPException(msg)
        if time.monotonic() > end:
            msg = "the answer takes too long"
            raise TimeoutError(msg)
        pieces.append(piece)
    if response.length:
        # Reading in pieces does not notice it by itself.
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


def _code(status: int, data: bytes) -> int | None:
    """Return Flower's number of an error."""
    if status == http.client.OK:
        return None
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        code = found.get("code") if isinstance(found, dict) else None
        return code if type(code) is int else None
    return None


def _reason(error: Exception) -> str:
    """Name what went wrong without repeating what the other side sent."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _is_loopback(host: str) -> bool:
    """Tell whether a host is an address of this machine that no other can reach."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
