"""Reading keys, requests and certificates that others sent; every size is bounded."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from shared.enrolment import Role, require_name, require_role
from shared.errors import CertificateInvalid, InvalidValue
from shared.pkibuild import BACKDATED

MAX_REQUEST_BYTES: Final = 16 * 1024
MAX_CERTIFICATE_BYTES: Final = 64 * 1024
# What the library raises for data that is damaged in one way or another; its warnings (about a
# negative serial number, a country of four letters) where a program makes errors of them.
FOREIGN: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    UserWarning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_PUBLIC: Final = b"-----BEGIN PUBLIC KEY-----"
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
RENEW_SHARE: Final = 1 / 3
_RESTORE = "Restore it from a copy, or enroll again."


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What a certificate says; nothing here was verified.

    Attributes:
        name: its common name.
        role: what it allows; ``None`` for servers and authorities, which may call nothing.
        public_key: SubjectPublicKeyInfo, DER.
        serial: its serial number.
        not_before: from when it is valid, UTC.
        not_after: until when it is valid, UTC.
    """

    name: str
    role: Role | None
    public_key: bytes
    serial: int
    not_before: datetime
    not_after: datetime


def read_certificate(data: bytes) -> CertificateFacts:
    """Read a certificate, PEM (the first one) or DER, without verifying it.

    Raises:
        CertificateInvalid: if it is damaged, longer than 64 KiB, or its key is not ECDSA P-384.
    """
    return facts_of(certificate_of(data))


def public_bytes(data: bytes) -> bytes:
    """Return what identifies a key: its SubjectPublicKeyInfo as DER, in the one form.

    Args:
        data: a private key, a public key or a certificate, PEM.

    Raises:
        CertificateInvalid: if it is none of these, or the key is not ECDSA P-384.
    """
    if _CERTIFICATE in data[:MAX_CERTIFICATE_BYTES]:
        return _spki(_p384(certificate_of(data).public_key()))
    if _PUBLIC in data[:MAX_REQUEST_BYTES]:
        try:
            key = serialization.load_pem_public_key(_bounded(data, MAX_REQUEST_BYTES))
        except FOREIGN:
            raise _damaged("key") from None
        return _spki(_p384(key))
    return _spki(load_private_key(data).public_key())


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate (of its DER form), 64 hexadecimal digits.

    Raises:
        CertificateInvalid: if it is damaged.
    """
    der = certificate_of(certificate).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def verify_certificate(
    certificate: bytes,
    ca: bytes,
    *,
    usage: Literal["client", "server"],
    host: str = "",
    now: datetime | None = None,
) -> CertificateFacts:
    """Check that an authority issued a certificate for a use, and that it is valid now.

    Args:
        certificate: PEM or DER.
        ca: the authority's certificate, PEM or DER; what is in it is trusted.
        usage: what it must be for.
        host: the DNS name or IP address that a server's certificate must be for.
        now: the time; default the clock.

    Raises:
        CertificateInvalid: saying what is wrong; a wrong clock is told with both times.
    """
    leaf, root = certificate_of(certificate), certificate_of(ca)
    facts = facts_of(leaf)
    require_clock(facts_of(root), now=now)
    require_clock(facts, now=now)
    builder = PolicyBuilder().store(Store([root])).time(now or datetime.now(UTC))
    try:
        _verify(builder, leaf, usage, host)
    except (VerificationError, *FOREIGN) as error:
        msg = f"The certificate of {facts.name!r} was not issued by this authority for a {usage}."
        raise CertificateInvalid(msg, hint="It is of another server, or was forged.") from error
    return facts


def renewal_is_due(facts: CertificateFacts, *, now: datetime | None = None) -> bool:
    """Tell whether less than a third of a certificate's time, counted from its issue, is left."""
    issued = min(facts.not_before + BACKDATED, facts.not_after)
    left = facts.not_after - (now or datetime.now(UTC))
    return left < (facts.not_after - issued) * RENEW_SHARE


def require_clock(facts: CertificateFacts, *, now: datetime | None = None) -> None:
    """Require that a certificate is valid by this machine's clock.

    Raises:
        CertificateInvalid: naming both times, as either may be the wrong one.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    if facts.not_before <= moment <= facts.not_after:
        return
    early = moment < facts.not_before
    bound = facts.not_before if early else facts.not_after
    word = "only valid from" if early else "valid until"
    msg = f"The certificate of {facts.name!r} is {word} {_shown(bound)}, and the clock of this "
    msg += f"machine says {_shown(moment)}."
    hint = "Set the clock (timedatectl)."
    if not early:
        hint += " If it is right, renew the certificate or enroll again."
    raise CertificateInvalid(msg, hint=hint)


def load_private_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted ECDSA P-384 private key, PEM.

    Raises:
        CertificateInvalid: if it is anything else.
    """
    try:
        key = serialization.load_pem_private_key(_bounded(data, MAX_REQUEST_BYTES), password=None)
    except FOREIGN:
        raise _damaged("key") from None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise _wrong_key()
    return key


def read_request(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request whose maker has the private key.

    Raises:
        CertificateInvalid: if it is damaged, longer than 16 KiB, not signed by its own key, or the
            key is not ECDSA P-384.
    """
    try:
        request = x509.load_pem_x509_csr(_bounded(csr_pem, MAX_REQUEST_BYTES))
        key = _p384(request.public_key())
        signed = request.is_signature_valid
    except FOREIGN:
        raise _damaged("request") from None
    if not signed:
        msg = "The certificate request is not signed by its own key."
        raise CertificateInvalid(msg, hint="Make a new one on the device.")
    return key


def request_key(csr_pem: bytes) -> bytes:
    """Return what identifies the key of a request, as :func:`public_bytes` does.

    Raises:
        CertificateInvalid: as :func:`read_request`.
    """
    return _spki(read_request(csr_pem))


def certificate_of(data: bytes) -> x509.Certificate:
    """Parse a certificate, PEM (the first one) or DER.

    Raises:
        CertificateInvalid: if it is damaged or longer than 64 KiB.
    """
    bounded = _bounded(data, MAX_CERTIFICATE_BYTES)
    try:
        if _CERTIFICATE in bounded:
            found = x509.load_pem_x509_certificate(bounded)
        else:
            found = x509.load_der_x509_certificate(bounded)
        numbered = found.serial_number > 0
        # Another count of unused bits would be a second encoding of the same signature, and so a
        # second fingerprint of the same certificate.
        unique = found.public_bytes(serialization.Encoding.DER).endswith(b"\0" + found.signature)
    except FOREIGN:
        raise _damaged("certificate") from None
    if not (numbered and unique):
        raise _damaged("certificate")
    return found


def pem_of(certificate: x509.Certificate) -> bytes:
    """Write a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    """Return what a parsed certificate says.

    Raises:
        CertificateInvalid: if a part of it is damaged, or the key is not ECDSA P-384.
    """
    try:
        subject = certificate.subject
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        units = subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        key = _p384(certificate.public_key())
        is_client = _is_client(certificate)
    except FOREIGN:
        raise _damaged("certificate") from None
    if len(names) != 1:
        raise _damaged("certificate")
    name = str(names[0].value)
    role: Role | None = None
    if is_client and len(units) == 1:
        try:
            role = require_role(str(units[0].value))
            require_name(name)
        except InvalidValue:
            role = None
    return CertificateFacts(
        name=name,
        role=role,
        public_key=_spki(key),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _verify(
    builder: PolicyBuilder, leaf: x509.Certificate, usage: Literal["client", "server"], host: str
) -> None:
    """Let the library verify a chain of two."""
    if usage == "client":
        builder.build_client_verifier().verify(leaf, [])
        return
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    builder.build_server_verifier(subject).verify(leaf, [])


def _is_client(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is for calling a server."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH] and not basic.ca


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    """Write a public key."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _p384(key: object) -> ec.EllipticCurvePublicKey:
    """Return a public key on P-384."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    raise _wrong_key()


def _bounded(data: bytes, most: int) -> bytes:
    """Return data of a bearable size."""
    if not (isinstance(data, bytes) and len(data) <= most):
        raise _damaged("text")
    return data


def _shown(moment: datetime) -> str:
    """Write a time for people."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _damaged(what: str) -> CertificateInvalid:
    """Return the error for something that cannot be read."""
    return CertificateInvalid(f"The {what} is damaged or too long.", hint=_RESTORE)


def _wrong_key() -> CertificateInvalid:
    """Return the error for a key of another kind."""
    msg = "A key is not an ECDSA key on P-384, as this fleet uses."
    return CertificateInvalid(msg, hint="Let fedslm client enroll make the key.")
