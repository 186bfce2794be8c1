"""Enrolment as the server does it: from a token to a certificate, and out again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from server.enrolling import (
    Enrolled,
    enroll,
    issue_token,
    leave,
    renew,
    require_certificate,
    revocation_list,
)
from server.fleetdb import FleetDatabase
from shared.enrolment import EnrolmentToken, Role
from shared.errors import AccessDenied, CertificateInvalid, EnrolmentRefused, InvalidValue
from shared.pki import certificate_request, new_key, public_bytes, read_certificate
from tests.shared.certificates import greedy_request, loaded_key, signed_with, small_authority

AUTHORITY = small_authority()
NOW = datetime.now(UTC).timestamp()
ROLES: tuple[Role, ...] = ("node", "operator", "viewer")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FleetDatabase]:
    with FleetDatabase(tmp_path / "fleet.sqlite") as opened:
        yield opened


def token_for(fleet: FleetDatabase, name: str, role: Role = "node") -> EnrolmentToken:
    return issue_token(
        fleet,
        name=name,
        role=role,
        address="localhost:9096",
        fingerprint=AUTHORITY.fingerprint,
        valid_seconds=3600,
        now=NOW,
    )


def enrolled(fleet: FleetDatabase, name: str, key: bytes, role: Role = "node") -> Enrolled:
    secret = token_for(fleet, name, role).secret
    csr = certificate_request(key, name)
    return enroll(fleet, AUTHORITY, secret=secret, csr=csr, days=30, now=NOW)


def test_a_token_names_this_server(fleet: FleetDatabase) -> None:
    token = token_for(fleet, "clinic-7")
    assert EnrolmentToken.from_text(token.to_text()) == token
    assert token.fingerprint == AUTHORITY.fingerprint
    assert token.expires_at == int(NOW + 3600)
    with pytest.raises(InvalidValue, match="address="):
        issue_token(
            fleet,
            name="a",
            role="node",
            address="no port",
            fingerprint=AUTHORITY.fingerprint,
            valid_seconds=60,
        )


@pytest.mark.parametrize("role", ROLES)
def test_a_token_becomes_a_certificate(fleet: FleetDatabase, role: Role) -> None:
    key = new_key()
    done = enrolled(fleet, "dr-who", key, role)
    facts = read_certificate(done.certificate)
    assert (facts.name, facts.role, facts.public_key) == ("dr-who", role, public_bytes(key))
    assert done.redeemed.client_index == (0 if role == "node" else None)
    entry = require_certificate(fleet, done.certificate, roles=[role], now=NOW)
    assert entry.serial == facts.serial
    for other in set(ROLES) - {role}:
        with pytest.raises(AccessDenied, match="may not do this"):
            require_certificate(fleet, done.certificate, roles=[other], now=NOW)


def test_a_lost_reply_is_given_again(fleet: FleetDatabase) -> None:
    key, secret = new_key(), token_for(fleet, "clinic-7").secret
    csr = certificate_request(key, "clinic-7")
    first = enroll(fleet, AUTHORITY, secret=secret, csr=csr, days=30, now=NOW)
    second = enroll(fleet, AUTHORITY, secret=secret, csr=csr, days=30, now=NOW + 10)
    assert first.redeemed == second.redeemed
    for done in (first, second):
        require_certificate(fleet, done.certificate, roles=["node"], now=NOW + 10)
    other = certificate_request(new_key(), "clinic-7")
    with pytest.raises(EnrolmentRefused, match="another key"):
        enroll(fleet, AUTHORITY, secret=secret, csr=other, days=30, now=NOW)


def test_a_greedy_request_gets_what_the_token_says(fleet: FleetDatabase) -> None:
    key, secret = new_key(), token_for(fleet, "clinic-7").secret
    csr = greedy_request(loaded_key(key))
    done = enroll(fleet, AUTHORITY, secret=secret, csr=csr, days=30, now=NOW)
    facts = read_certificate(done.certificate)
    assert (facts.name, facts.role) == ("clinic-7", "node")


def test_a_bad_request_does_not_use_the_token_up(fleet: FleetDatabase) -> None:
    secret = token_for(fleet, "clinic-7").secret
    for bad in (b"", b"x" * 100_000, certificate_request(new_key(), "a")[:-60]):
        with pytest.raises(CertificateInvalid):
            enroll(fleet, AUTHORITY, secret=secret, csr=bad, days=30, now=NOW)
    csr = certificate_request(new_key(), "clinic-7")
    done = enroll(fleet, AUTHORITY, secret=secret, csr=csr, days=30, now=NOW)
    assert done.redeemed.name == "clinic-7"


def test_renewal_keeps_name_role_and_key(fleet: FleetDatabase) -> None:
    key = new_key()
    old = enrolled(fleet, "clinic-7", key)
    later = NOW + 20 * 86400
    new = renew(
        fleet,
        AUTHORITY,
        public_key=public_bytes(key),
        csr=greedy_request(loaded_key(key)),
        days=30,
        now=later,
    )
    facts = read_certificate(new)
    assert (facts.name, facts.role, facts.public_key) == ("clinic-7", "node", public_bytes(key))
    assert facts.not_after > read_certificate(old.certificate).not_after
    for certificate in (old.certificate, new):
        require_certificate(fleet, certificate, roles=["node"], now=later)
    with pytest.raises(AccessDenied, match="another key"):
        renew(
            fleet,
            AUTHORITY,
            public_key=public_bytes(key),
            csr=certificate_request(new_key(), "clinic-7"),
            days=30,
        )
    stranger = new_key()
    with pytest.raises(AccessDenied, match="not enrolled"):
        renew(
            fleet,
            AUTHORITY,
            public_key=public_bytes(stranger),
            csr=certificate_request(stranger, "clinic-7"),
            days=30,
        )


def test_the_revoked_are_refused_everywhere(fleet: FleetDatabase) -> None:
    key = new_key()
    done = enrolled(fleet, "clinic-7", key)
    fleet.revoke("clinic-7", "lost", now=NOW)
    with pytest.raises(AccessDenied, match="revoked"):
        require_certificate(fleet, done.certificate, roles=["node"], now=NOW)
    csr = certificate_request(key, "clinic-7")
    with pytest.raises(AccessDenied, match="revoked"):
        renew(fleet, AUTHORITY, public_key=public_bytes(key), csr=csr, days=30)
    with pytest.raises(AccessDenied, match="revoked"):
        leave(fleet, public_bytes(key))
    crl = x509.load_pem_x509_crl(revocation_list(fleet, AUTHORITY, days=7))
    assert [entry.serial_number for entry in crl] == [read_certificate(done.certificate).serial]


def test_leaving_revokes_by_its_own_hand(fleet: FleetDatabase) -> None:
    key = new_key()
    done = enrolled(fleet, "clinic-7", key)
    leave(fleet, public_bytes(key), now=NOW)
    with pytest.raises(AccessDenied, match="revoked"):
        require_certificate(fleet, done.certificate, roles=["node"], now=NOW)
    event = fleet.events(1)[0]
    assert (event.kind, event.facts["by"], event.facts["reason"]) == (
        "revoke",
        "clinic-7",
        "left by itself",
    )
    with pytest.raises(AccessDenied, match="not enrolled"):
        leave(fleet, b"nobody")


def test_only_certificates_that_were_issued_here_count(fleet: FleetDatabase) -> None:
    key = new_key()
    enrolled(fleet, "clinic-7", key)
    csr = certificate_request(key, "clinic-7")
    # By our authority's key, but never noted: as after a theft of the key, or an older database.
    unknown = AUTHORITY.sign_request(csr, name="clinic-7", role="node", days=30)
    with pytest.raises(AccessDenied, match="was not issued by this server"):
        require_certificate(fleet, unknown, roles=["node"])
    operator = AUTHORITY.sign_request(csr, name="clinic-7", role="operator", days=30)
    fleet.renewed("clinic-7", read_certificate(operator).serial)
    with pytest.raises(AccessDenied, match="may not do this"):
        require_certificate(fleet, operator, roles=["operator", "node"])
    foreign = signed_with(AUTHORITY.certificate, loaded_key(key), loaded_key(new_key()))
    with pytest.raises(AccessDenied, match="not enrolled"):
        require_certificate(fleet, foreign, roles=["node"])


def test_an_expired_certificate_is_refused_with_both_times(fleet: FleetDatabase) -> None:
    done = enrolled(fleet, "clinic-7", new_key())
    late = NOW + timedelta(days=31).total_seconds()
    with pytest.raises(CertificateInvalid, match=r"valid until .* says"):
        require_certificate(fleet, done.certificate, roles=["node"], now=late)
