"""How people and devices come into a fleet and go: tokens, certificates, renewal, revocation.

Each use case is one function over the fleet's database and the authority, for the command line and
for the control service alike. The database decides who; the authority only writes it down.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from server.fleetdb import FleetDatabase, NodeEntry, Redeemed
from shared.enrolment import EnrolmentToken, Role, require_address
from shared.errors import AccessDenied
from shared.pki import Authority, read_certificate, request_key, require_clock

_ASK = "Ask the operator for a new enrolment token."
LEFT = "left by itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """A redeemed token and the certificate that was made for it, PEM."""

    redeemed: Redeemed
    certificate: bytes


def issue_token(
    fleet: FleetDatabase,
    *,
    name: str,
    role: Role,
    address: str,
    fingerprint: str,
    valid_seconds: float,
    now: float | None = None,
    actor: str = "operator",
) -> EnrolmentToken:
    """Make a token; earlier open tokens of the name are void from now on.

    Args:
        fleet: the fleet.
        name: what the device or person will be called.
        role: what it will be allowed.
        address: where devices without a certificate dial, ``host:port``.
        fingerprint: of the authority's certificate.
        valid_seconds: in (0, 365 days].
        now: Unix seconds; default the clock.
        actor: who did it, for the log.

    Returns:
        The token, which is kept nowhere: show it once.

    Raises:
        InvalidValue: for a bad name, role, address or validity.
        EnrolmentRefused: if the name is in use, or has another role.
    """
    require_address(address)
    moment = datetime.now(UTC).timestamp() if now is None else now
    secret = fleet.new_token(name, valid_seconds=valid_seconds, role=role, now=moment, actor=actor)
    return EnrolmentToken(
        address=address,
        fingerprint=fingerprint,
        secret=secret,
        name=name,
        expires_at=int(moment + valid_seconds),
    )


def enroll(
    fleet: FleetDatabase,
    authority: Authority,
    *,
    secret: str,
    csr: bytes,
    days: int,
    now: float | None = None,
) -> Enrolled:
    """Redeem a token for a certificate.

    The request is checked first, so that a bad one does not use the token up. A device whose reply
    was lost may come again with the same key until the token expires.

    Args:
        fleet: the fleet.
        authority: signs the certificate.
        secret: the token's secret.
        csr: the request, PEM.
        days: how long the certificate is good.
        now: Unix seconds; default the clock.

    Raises:
        CertificateInvalid: if the request is none, or the authority is not valid now.
        EnrolmentRefused: if the token is not good, or not for this key.
    """
    key = request_key(csr)
    redeemed = fleet.redeem(secret, key, now=now)
    certificate = _issue(fleet, authority, csr, redeemed.name, redeemed.role, days=days, now=now)
    return Enrolled(redeemed=redeemed, certificate=certificate)


def renew(
    fleet: FleetDatabase,
    authority: Authority,
    *,
    public_key: bytes,
    csr: bytes,
    days: int,
    now: float | None = None,
) -> bytes:
    """Make a new certificate for a key that is enrolled, with the name and role it has.

    Args:
        fleet: the fleet.
        authority: signs the certificate.
        public_key: of the caller, as its connection proved it.
        csr: a request of the same key, PEM.
        days: how long the certificate is good.
        now: Unix seconds; default the clock.

    Returns:
        The certificate, PEM; the old one stays good until it expires.

    Raises:
        CertificateInvalid: if the request is none, or the authority is not valid now.
        AccessDenied: if the key is not in force, or the request is of another key.
    """
    if request_key(csr) != public_key:
        msg = "The request is of another key than the caller's."
        raise AccessDenied(msg, hint="A new key needs a new enrolment.")
    entry = _in_force(fleet.node_by_key(public_key))
    return _issue(fleet, authority, csr, entry.name, entry.role, days=days, now=now)


def leave(fleet: FleetDatabase, public_key: bytes, *, now: float | None = None) -> None:
    """Take a caller out of the fleet at its own wish; its key never comes back.

    Raises:
        AccessDenied: if the key is not in force.
    """
    entry = _in_force(fleet.node_by_key(public_key))
    fleet.revoke(entry.name, LEFT, now=now, actor=entry.name)


def require_certificate(
    fleet: FleetDatabase,
    certificate: bytes,
    *,
    roles: Collection[Role],
    now: float | None = None,
) -> NodeEntry:
    """Check a certificate whose holder a handshake has authenticated, at every call.

    That our authority signed it and that the peer has the key is TLS's part. This is the rest: that
    this very certificate was issued here, to this key, name and role, and that all of it is still
    in force.

    Args:
        fleet: the fleet.
        certificate: PEM or DER.
        roles: who may do what is asked.
        now: Unix seconds; default the clock.

    Returns:
        The enrolment, which is what counts from here on.

    Raises:
        AccessDenied: if it was not issued here, was revoked, or its role may not.
        CertificateInvalid: if it is damaged, or not valid by this clock.
    """
    facts = read_certificate(certificate)
    require_clock(facts, now=None if now is None else datetime.fromtimestamp(now, UTC))
    entry = _in_force(fleet.node_by_key(facts.public_key))
    if fleet.issued_to(facts.serial) != facts.public_key:
        msg = f"The certificate of {entry.name} was not issued by this server."
        raise AccessDenied(msg, hint=_ASK)
    if (facts.name, facts.role) != (entry.name, entry.role) or entry.role not in roles:
        msg = f"name={entry.name!r} with role={entry.role!r} may not do this."
        raise AccessDenied(msg, hint=f"Expected role: {', '.join(sorted(roles))}.")
    return entry


def revocation_list(
    fleet: FleetDatabase, authority: Authority, *, days: int, now: float | None = None
) -> bytes:
    """Return the signed list of revoked certificates, PEM, for a proxy that wants a file."""
    moment = None if now is None else datetime.fromtimestamp(now, UTC)
    return authority.revocation_list(fleet.revoked_serials(), days=days, now=moment)


def _issue(
    fleet: FleetDatabase,
    authority: Authority,
    csr: bytes,
    name: str,
    role: Role,
    *,
    days: int,
    now: float | None,
) -> bytes:
    """Sign a request and note the certificate before anybody has it."""
    moment = None if now is None else datetime.fromtimestamp(now, UTC)
    certificate = authority.sign_request(csr, name=name, role=role, days=days, now=moment)
    fleet.renewed(name, read_certificate(certificate).serial, now=now)
    return certificate


def _in_force(entry: NodeEntry | None) -> NodeEntry:
    """Return an enrolment that is there and was not revoked."""
    if entry is None:
        msg = "This key is not enrolled here."
        raise AccessDenied(msg, hint=_ASK)
    if entry.revoked_at is not None:
        msg = f"The enrolment of {entry.name} was revoked."
        raise AccessDenied(msg, hint=_ASK)
    return entry
