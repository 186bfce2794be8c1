"""The certificates of a fleet: one authority, its server, and the keys it enrolled.

X.509 by the ``cryptography`` package; ECDSA on P-384 everywhere. The authority decides everything a
certificate says; of a request it takes the public key alone, once its holder has proved to have the
private one. A certificate says who somebody is; whether that is still so is in the fleet's
database, which is asked at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared.enrolment import Role, require_name, require_role
from shared.errors import CertificateInvalid, InvalidValue
from shared.pkibuild import (
    authority_id,
    builder_for,
    host_name,
    key_text,
    key_usage,
    subject_name,
    validity,
)
from shared.pkiread import (
    FOREIGN,
    CertificateFacts,
    certificate_of,
    facts_of,
    fingerprint,
    load_private_key,
    pem_of,
    public_bytes,
    read_certificate,
    read_request,
    renewal_is_due,
    request_key,
    require_clock,
    verify_certificate,
)
from shared.privatefiles import create_private, read_private

__all__ = [
    "Authority",
    "CertificateFacts",
    "Issued",
    "certificate_request",
    "fingerprint",
    "new_key",
    "openssh_form",
    "public_bytes",
    "read_certificate",
    "renewal_is_due",
    "request_key",
    "require_clock",
    "verify_certificate",
]

MAX_HOSTS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new certificate with its private key, both PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        """Return nothing of the key."""
        return f"Issued(certificate={fingerprint(self.certificate)})"


class Authority:
    """A certificate authority that signs for one fleet, and for nobody below it.

    Args:
        certificate: its own certificate.
        key: the private key of that certificate.

    Raises:
        CertificateInvalid: if they do not belong together, or it is no authority.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        if certificate.public_key() != key.public_key():
            msg = "The authority's key is not that of its certificate."
            raise CertificateInvalid(msg, hint="Restore both files from the same copy.")
        try:
            basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (x509.ExtensionNotFound, *FOREIGN):
            basic = None
        if basic is None or not basic.ca:
            msg = "The certificate is not that of an authority."
            raise CertificateInvalid(msg, hint="Restore it from a copy.")
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, common_name: str, *, days: int, now: datetime | None = None) -> Authority:
        """Make a new authority.

        Args:
            common_name: 1 to 64 printable characters, for people.
            days: how long it is valid; no certificate of it is valid for longer.
            now: the time; default the clock.

        Raises:
            InvalidValue: for a bad name or number of days.
        """
        if not (0 < len(common_name) <= 64 and common_name.isprintable()):
            msg = "The authority's name is not 1 to 64 printable characters."
            raise InvalidValue(msg)
        key = ec.generate_private_key(ec.SECP384R1())
        subject = subject_name(common_name, None)
        start, end = validity(days, now)
        usage = key_usage(signs_certificates=True)
        builder = (
            builder_for(subject, subject, key.public_key(), start, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(authority_id(key.public_key()), critical=False)
        )
        return cls(builder.sign(key, hashes.SHA384()), key)

    @classmethod
    def load(cls, cert_path: Path, key_path: Path) -> Authority:
        """Read an authority from its files.

        Raises:
            FleetError: if a file is missing, or others may read it.
            CertificateInvalid: if one is damaged, or they do not belong together.
        """
        certificate = certificate_of(read_private(cert_path))
        return cls(certificate, load_private_key(read_private(key_path)))

    def save(self, cert_path: Path, key_path: Path) -> None:
        """Write both files, mode 600; the certificate last.

        Raises:
            FleetError: if one exists already or cannot be written.
            OutOfDisk: if no space is left.
        """
        create_private(key_path, key_text(self._key))
        create_private(cert_path, self.certificate)

    @property
    def certificate(self) -> bytes:
        """Return the authority's own certificate, PEM."""
        return pem_of(self._certificate)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of its certificate (DER), 64 hexadecimal digits."""
        return fingerprint(self.certificate)

    def issue_server(
        self, hosts: Sequence[str], *, days: int, now: datetime | None = None
    ) -> Issued:
        """Make a key and a certificate for a server.

        Args:
            hosts: 1 to 64 DNS names and IP addresses under which devices reach it.
            days: how long it is valid, but never longer than the authority.
            now: the time; default the clock.

        Raises:
            InvalidValue: for a bad host or number of days.
            CertificateInvalid: if the authority itself is not valid now.
        """
        if not 0 < len(hosts) <= MAX_HOSTS:
            msg = f"{len(hosts)} hosts, expected 1 to {MAX_HOSTS}."
            raise InvalidValue(msg)
        names = [host_name(host) for host in dict.fromkeys(hosts)]
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = self._sign(
            key.public_key(),
            subject_name(str(hosts[0])[:64], None),
            x509.SubjectAlternativeName(names),
            ExtendedKeyUsageOID.SERVER_AUTH,
            days=days,
            now=now,
        )
        return Issued(certificate=certificate, key=key_text(key))

    def sign_request(
        self, csr_pem: bytes, *, name: str, role: Role, days: int, now: datetime | None = None
    ) -> bytes:
        """Make a certificate for the key of a request.

        Guarantee:
            Nothing of the request but its public key is in the certificate.

        Args:
            csr_pem: the request, at most 16 KiB; who made it must have the private key.
            name: what the certificate says.
            role: what the certificate says.
            days: how long it is valid, but never longer than the authority.
            now: the time; default the clock.

        Returns:
            The certificate, PEM.

        Raises:
            CertificateInvalid: if the request is damaged, not signed by its own key, or has a key
                other than ECDSA P-384; or the authority itself is not valid now.
            InvalidValue: for a bad name, role or number of days.
        """
        require_name(name)
        require_role(role)
        return self._sign(
            read_request(csr_pem),
            subject_name(name, role),
            # A URI cannot be mistaken for the name of a host.
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(f"urn:fedslm:{role}:{name}")]
            ),
            ExtendedKeyUsageOID.CLIENT_AUTH,
            days=days,
            now=now,
        )

    def revocation_list(
        self, revoked: Sequence[tuple[int, float]], *, days: int, now: datetime | None = None
    ) -> bytes:
        """Return a signed list of revoked certificates, PEM, for software that asks for one.

        Our own services ask the database instead, which is never out of date.

        Args:
            revoked: serial numbers with the time of revocation in Unix seconds.
            days: after how many days the list is no longer believed.
            now: the time; default the clock.

        Raises:
            InvalidValue: for a bad number of days.
        """
        start, end = validity(days, now)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(start)
            .next_update(end)
            .add_extension(authority_id(self._key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(int(start.timestamp())), critical=False)
        )
        for serial, moment in revoked:
            when = datetime.fromtimestamp(int(moment), UTC)
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
            builder = builder.add_revoked_certificate(entry.build())
        crl = builder.sign(self._key, hashes.SHA384())
        return crl.public_bytes(serialization.Encoding.PEM)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        names: x509.SubjectAlternativeName,
        purpose: x509.ObjectIdentifier,
        *,
        days: int,
        now: datetime | None,
    ) -> bytes:
        """Sign a certificate that signs nothing below it."""
        require_clock(facts_of(self._certificate), now=now)
        start, end = validity(days, now)
        start = max(start, self._certificate.not_valid_before_utc)
        end = min(end, self._certificate.not_valid_after_utc)
        builder = (
            builder_for(subject, self._certificate.subject, key, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(authority_id(self._key.public_key()), critical=False)
        )
        return pem_of(builder.sign(self._key, hashes.SHA384()))


def new_key() -> bytes:
    """Make an ECDSA P-384 key, as unencrypted PKCS 8 PEM."""
    return key_text(ec.generate_private_key(ec.SECP384R1()))


def openssh_form(key_pem: bytes) -> bytes:
    """Return the same private key as OpenSSH writes it, which stock Flower nodes read.

    Raises:
        CertificateInvalid: if it is not an ECDSA P-384 private key in PEM.
    """
    return load_private_key(key_pem).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def certificate_request(key_pem: bytes, name: str) -> bytes:
    """Make a request for a certificate, PEM, signed by the key; the name is only a wish.

    Raises:
        CertificateInvalid: if it is not an ECDSA P-384 private key in PEM.
        InvalidValue: for a bad name.
    """
    require_name(name)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name(name, None))
    request = builder.sign(load_private_key(key_pem), hashes.SHA384())
    return request.public_bytes(serialization.Encoding.PEM)
