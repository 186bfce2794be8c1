"""The server's certificate expires in the middle of a run, and is renewed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from server.home import ServerHome, write_secret
from tests.faults.fleet import Fleet, RealNode, check_books
from tests.server.fleetkit import wait_until
from tests.shared.certificates import EcKey, loaded_key

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(240)]


def expire(home: ServerHome) -> None:
    """Replace the certificate by the same one, which ended a minute ago."""
    found = x509.load_pem_x509_certificate(home.server_certificate.read_bytes())
    authority = load_pem_private_key(home.ca_key.read_bytes(), None)
    assert isinstance(authority, EcKey)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(found.subject)
        .issuer_name(found.issuer)
        .public_key(loaded_key(home.server_key.read_bytes()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(minutes=1))
    )
    for extension in found.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    from cryptography.hazmat.primitives.serialization import Encoding

    write_secret(
        home.server_certificate, builder.sign(authority, SHA384()).public_bytes(Encoding.PEM)
    )


def doubts(node: RealNode) -> bool:
    """Tell whether a node is away because of the server's certificate."""
    status = node.status()
    return status.get("state") == "away" and status["error"]["code"] == "certificate-invalid"


def test_an_expired_certificate_stops_a_run_and_a_new_one_lets_it_go_on(fleet: Fleet) -> None:
    fleet.order("expired", "run.rounds=8", "server.quorum=1.0", "server.deadline_seconds=20")
    fleet.wait_round("expired", 2)
    node = fleet.nodes[0]
    try:
        expire(fleet.home)
        # Connections that are open would stay so.
        fleet.restart("front")
        # A node with an answer in hand tries to send it until the deadline.
        wait_until("doubt", lambda: doubts(node), seconds=60)
        assert "expired" in node.status()["error"]["message"]
        assert fleet.runs.view("expired").round < 8
    finally:
        # As the supervisor does once an hour; nothing is restarted.
        assert fleet.home.renew_server_certificate()
    records = fleet.finish("expired", seconds=150)
    assert records[-1]["answered"] == 5
    check_books(fleet, "expired", 8, lost=4)
