"""The parts that all certificates of a fleet are built from."""

from __future__ import annotations

import ipaddress
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.enrolment import Role
from shared.errors import InvalidValue

MAX_DAYS: Final = 36_500
# A device without a battery for its clock starts with the date of its last shutdown.
BACKDATED: Final = timedelta(days=30)
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_ORGANISATION = "fedslm"


def key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def subject_name(common_name: str, role: Role | None) -> x509.Name:
    """Return a subject; the role stands in its organisational unit."""
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION)]
    if role is not None:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def host_name(host: str) -> x509.GeneralName:
    """Return a host as a name in a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        msg = f"host={host[:80]!r}, expected a DNS name in ASCII or an IP address."
        raise InvalidValue(msg, hint="Give the name or address that devices connect to.")
    return x509.DNSName(host)


def validity(days: int, now: datetime | None) -> tuple[datetime, datetime]:
    """Return from when to when; from 30 days ago, for devices whose clock is behind."""
    if not (type(days) is int and 0 < days <= MAX_DAYS):
        msg = f"days={days!r}, expected an integer in 1..{MAX_DAYS}."
        raise InvalidValue(msg)
    made = (now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
    return made - BACKDATED, made + timedelta(days=days)


def builder_for(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """Return what all our certificates have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        # 128 random bits under a leading one: never zero, never negative, never twice.
        .serial_number(1 << 128 | secrets.randbits(128))
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def authority_id(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    """Return which key signed."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key may be used for: to sign certificates and lists, or handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
