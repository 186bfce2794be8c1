"""Whom a device talks to before it has any certificate: the authority with the token's fingerprint.

A first handshake trusts nobody and is used for nothing but to read which certificates the server
shows. If one of them has the fingerprint, it is the authority, whoever sent it; everything after
that goes over a second connection that trusts this authority alone. An attacker in between can show
the same certificate and then fails in the second handshake, for want of the server's key.
"""

from __future__ import annotations

import hmac
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from client.controlchannel import DEADLINE_SECONDS, Patience, call_again, open_channel
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.control.methods import METHODS
from shared.enrolment import EnrolmentAnswer, EnrolmentToken, require_address, require_role
from shared.errors import (
    CertificateInvalid,
    EnrolmentRefused,
    InvalidValue,
    ProtocolError,
    ServerUnreachable,
)
from shared.pki import fingerprint

_MAX_CHAIN: Final = 8
_MAX_DER: Final = 65_536


def enroll(
    address: str,
    ca_fingerprint: str,
    token: str,
    csr: bytes,
    *,
    timeout: float = DEADLINE_SECONDS,
    attempts: int = 3,
    pause: Callable[[float], None] = time.sleep,
) -> EnrolmentAnswer:
    """Redeem a token at a server that nothing is known of but a fingerprint.

    Args:
        address: the enrolment port, ``host:port``, as the token names it.
        ca_fingerprint: SHA-256 of the authority's certificate, from the token.
        token: the token's secret; sent only to the server with this authority.
        csr: a certificate request, PEM.
        timeout: seconds that one attempt may take.
        attempts: how often to try while the server is away or busy; with the same key a token may
            come twice.
        pause: waits between attempts; gets seconds.

    Raises:
        EnrolmentRefused: if the token is refused, or the server is another one.
        ServerUnreachable: if there is none.
        ProtocolError: if the answer is not one.
    """
    ca = authority_behind(address, ca_fingerprint, timeout=timeout)
    request = pb.EnrollRequest(token=token, csr=csr)
    with open_channel(address, grpc.ssl_channel_credentials(ca)) as channel:
        found = call_again(
            channel.unary_unary(METHODS["Enrolment.Enroll"].path),
            request,
            pb.EnrollResponse,
            seconds=timeout,
            patience=Patience(attempts=attempts, pause=pause),
            at=address,
        )
    return _answer(found)


def redeem(token: EnrolmentToken, csr: bytes) -> EnrolmentAnswer:
    """Redeem a token where it says; what :func:`client.enrolling.enroll` calls."""
    return enroll(token.address, token.fingerprint, token.secret, csr)


def authority_behind(address: str, ca_fingerprint: str, *, timeout: float) -> bytes:
    """Return the authority's certificate that a server shows, if it is the expected one.

    Args:
        address: ``host:port``.
        ca_fingerprint: SHA-256 of the certificate, 64 hexadecimal digits.
        timeout: seconds.

    Returns:
        The certificate, PEM.

    Raises:
        EnrolmentRefused: if the server shows no certificate of this fingerprint.
        ServerUnreachable: if there is no TLS server.
        InvalidValue: for an address that is none.
    """
    for der in _shown(address, timeout):
        try:
            found = fingerprint(der)
        except CertificateInvalid:
            continue
        if hmac.compare_digest(found, ca_fingerprint):
            return ssl.DER_cert_to_PEM_cert(der).encode("ascii")
    msg = f"The server at {address} is not the one that the token names."
    hint = "Something else answers in its place. Do not go on; ask the operator."
    raise EnrolmentRefused(msg, hint=hint)


def _shown(address: str, timeout: float) -> list[bytes]:
    """Return the certificates (DER) that a server shows; nothing else is read or sent.

    Raises:
        ServerUnreachable: if there is no TLS server.
    """
    host, port = require_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Trusting nobody is the point: the fingerprint decides, in the caller.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return [der for der in _chain(secure) if len(der) <= _MAX_DER][:_MAX_CHAIN]
    except (OSError, ValueError) as error:
        msg = f"The server at {address} does not answer, or not with TLS."
        hint = "Check the network and the address; is the server running?"
        raise ServerUnreachable(msg, hint=hint) from error


def _chain(secure: ssl.SSLSocket) -> list[bytes]:
    """Return the chain as the server sent it (DER).

    Python 3.13 has a public method for it; 3.11 and 3.12 have the same one on the object inside.
    """
    public: Any = getattr(secure, "get_unverified_chain", None)
    if public is not None:
        return [bytes(der) for der in public()]
    inside: Any = getattr(secure, "_sslobj", None)
    found = inside.get_unverified_chain() or []
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in found]


def _answer(found: pb.EnrollResponse) -> EnrolmentAnswer:
    """Read an enrolment's answer.

    Raises:
        ProtocolError: if the role is not known.
    """
    try:
        role = require_role(found.role)
    except InvalidValue as error:
        msg = "The server enrolled this device in a role that is not known here."
        raise ProtocolError(msg, hint="Is the server newer than this program?") from error
    return EnrolmentAnswer(
        certificate=found.certificate,
        ca=found.ca,
        name=found.name,
        role=role,
        client_index=found.client_index if found.HasField("client_index") else None,
        control_address=found.control_address,
        fleet_address=found.fleet_address,
        ledger_key=found.ledger_key or None,
        adapter_key=found.adapter_key or None,
        base_digest=found.base_digest or None,
    )
