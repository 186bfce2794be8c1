"""Certificates for tests, and certificates that our authority would never make."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.pki import Authority

EcKey = ec.EllipticCurvePrivateKey


def pem_key(key: EcKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def loaded_key(pem: bytes) -> EcKey:
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, EcKey)
    return key


def greedy_request(key: EcKey) -> bytes:
    """Return a request that asks for everything: another name and role, an authority, a host."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "operator"),
            x509.NameAttribute(NameOID.COMMON_NAME, "admin"),
        ]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("fleet.example.org")]), critical=False
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA384())
    )
    return request.public_bytes(serialization.Encoding.PEM)


def signed_with(
    issuer_cert: bytes,
    issuer_key: EcKey,
    key: EcKey,
    *,
    common_names: Sequence[str] = ("clinic-7",),
    units: Sequence[str] = ("node",),
    extensions: Sequence[x509.ExtensionType] = (),
) -> bytes:
    """Sign anything with any key, as a thief or a leaf that plays authority would."""
    issuer = x509.load_pem_x509_certificate(issuer_cert)
    now = datetime.now(UTC)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
        + [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def openssl_verify(folder: Path, ca: bytes, certificate: bytes, *options: str) -> str:
    """Let OpenSSL verify a certificate strictly; "OK" or its error."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl program to check against")
    (folder / "oracle-ca.crt").write_bytes(ca)
    (folder / "oracle.crt").write_bytes(certificate)
    done = subprocess.run(
        [
            program,
            "verify",
            "-x509_strict",
            "-CAfile",
            folder / "oracle-ca.crt",
            *options,
            folder / "oracle.crt",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 0:
        return "OK"
    return done.stderr


def small_authority() -> Authority:
    """Return a new authority of ten years."""
    return Authority.create("test fleet", days=3650)
