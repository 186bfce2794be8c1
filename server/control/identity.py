"""Who calls: from the certificate of the connection to an entry of the fleet, at every call.

A connection outlives what was true when it was made, so nothing is remembered but the reading of a
certificate: expiry, enrolment, role and revocation are asked again each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from server.enrolling import require_certificate
from server.fleetdb import FleetDatabase
from shared.canonical import sha256_hex
from shared.enrolment import Role
from shared.errors import CertificateInvalid
from shared.pki import read_certificate

_PEM = "x509_pem_cert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What the handshake of a connection showed.

    Attributes:
        peer: the other end, as gRPC writes addresses.
        certificate: PEM; empty without one.
    """

    peer: str
    certificate: bytes

    @classmethod
    def of(cls, peer: str, shown: Mapping[str, Iterable[bytes]]) -> Connection:
        """Read what gRPC says about a call's connection."""
        certificates = list(shown.get(_PEM, ()))
        return cls(peer=peer, certificate=bytes(certificates[0]) if certificates else b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, by the fleet's own entry and not by what the caller says.

    Attributes:
        name: what the operator called it; empty for a caller without a certificate.
        role: what it may do; ``None`` without a certificate.
        client_index: which client of a run it speaks for; ``None`` for people.
        public_key: SubjectPublicKeyInfo, DER; empty without a certificate.
    """

    name: str
    role: Role | None
    client_index: int | None
    public_key: bytes


NOBODY = Caller(name="", role=None, client_index=None, public_key=b"")


class Door(Protocol):
    """Decides who a caller is."""

    def key(self, connection: Connection) -> str:
        """Return whose limits a call counts against; cheap, and asked of everybody."""
        ...

    def admit(self, connection: Connection, roles: Collection[Role]) -> Caller:
        """Return who calls.

        Raises:
            AccessDenied: if nobody who is in one of the roles.
            CertificateInvalid: if the certificate is not good now.
        """
        ...


class CertificateDoor:
    """Admits holders of certificates that the fleet knows and has not revoked.

    Args:
        fleet: the fleet.
        clock: Unix seconds.
    """

    def __init__(self, fleet: FleetDatabase, *, clock: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        self._clock = clock

    def key(self, connection: Connection) -> str:
        """Return a digest of the certificate's key."""
        return sha256_hex(_public_key(connection.certificate))

    def admit(self, connection: Connection, roles: Collection[Role]) -> Caller:
        """Return the entry of the certificate's key, if it is in force and may do this."""
        now = self._clock()
        entry = require_certificate(self._fleet, connection.certificate, roles=roles, now=now)
        self._fleet.seen(entry.public_key, now=now)
        return Caller(
            name=entry.name,
            role=entry.role,
            client_index=entry.client_index,
            public_key=entry.public_key,
        )


class AddressDoor:
    """Admits everybody as nobody; limits count by address."""

    def key(self, connection: Connection) -> str:
        """Return the address without its port; of IPv6 the network, which one holder has whole."""
        return network_of(connection.peer)

    def admit(self, connection: Connection, roles: Collection[Role]) -> Caller:
        """Return nobody."""
        del connection, roles
        return NOBODY


def network_of(peer: str) -> str:
    """Return the part of gRPC's peer name that stands for one holder of addresses.

    >>> network_of("ipv4:192.0.2.7:50000")
    'ipv4:192.0.2.7'
    >>> network_of("ipv6:%5B2001:db8::1%5D:50000")
    'ipv6:2001:db8::'
    """
    from ipaddress import IPv6Address
    from urllib.parse import unquote

    kind, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    if kind != "ipv6":
        return f"{kind}:{host}"
    try:
        found = IPv6Address(host)
    except ValueError:
        return "ipv6:?"
    if found.ipv4_mapped is not None:
        return f"ipv4:{found.ipv4_mapped}"
    return f"ipv6:{IPv6Address(int(found) >> 64 << 64)}"


@lru_cache(maxsize=1024)
def _public_key(certificate: bytes) -> bytes:
    """Return the key of a certificate; the handshake has verified who issued it.

    Raises:
        CertificateInvalid: without a certificate, or for one that cannot be read.
    """
    if not certificate:
        msg = "the connection shows no certificate."
        raise CertificateInvalid(msg, hint="Enroll first.")
    return read_certificate(certificate).public_key
