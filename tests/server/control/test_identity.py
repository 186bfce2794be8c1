from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.control.identity import AddressDoor, CertificateDoor, Connection, network_of
from server.fleetdb import FleetDatabase
from server.home import ServerHome
from shared.enrolment import Role
from shared.errors import AccessDenied, CertificateInvalid
from shared.pki import Authority, certificate_request, new_key, read_certificate
from tests.server.control.service import identity, make_home

EVERYONE: tuple[Role, ...] = ("node", "viewer", "operator")
OPERATORS: tuple[Role, ...] = ("operator",)


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> ServerHome:
    return make_home(tmp_path / "server")


def connection(certificate: bytes) -> Connection:
    return Connection.of("ipv4:127.0.0.1:5", {"x509_pem_cert": [certificate]})


def test_an_enrolled_key_is_admitted_as_the_fleet_knows_it(home: ServerHome) -> None:
    who = identity(home, "clinic-1", address="localhost:1")
    with FleetDatabase(home.fleet_database) as fleet:
        door = CertificateDoor(fleet)
        caller = door.admit(connection(who.certificate), EVERYONE)
        assert (caller.name, caller.role, caller.client_index) == ("clinic-1", "node", 0)
        entry = fleet.node_by_name("clinic-1")
        assert entry is not None
        assert entry.public_key == caller.public_key
        assert entry.last_seen is not None


def test_a_role_that_may_not_is_refused(home: ServerHome) -> None:
    who = identity(home, "clinic-1", address="localhost:1")
    with FleetDatabase(home.fleet_database) as fleet, pytest.raises(AccessDenied):
        CertificateDoor(fleet).admit(connection(who.certificate), OPERATORS)


def test_revocation_counts_at_the_next_call(home: ServerHome) -> None:
    who = identity(home, "clinic-1", address="localhost:1")
    with FleetDatabase(home.fleet_database) as fleet:
        door = CertificateDoor(fleet)
        door.admit(connection(who.certificate), EVERYONE)
        fleet.revoke("clinic-1", "lost")
        with pytest.raises(AccessDenied):
            door.admit(connection(who.certificate), EVERYONE)


def test_expiry_counts_at_the_next_call(home: ServerHome) -> None:
    who = identity(home, "clinic-1", address="localhost:1", days=1)
    times = [read_certificate(who.certificate).not_after.timestamp() - 1]
    with FleetDatabase(home.fleet_database) as fleet:
        door = CertificateDoor(fleet, clock=lambda: times[0])
        door.admit(connection(who.certificate), EVERYONE)
        times[0] += 2
        with pytest.raises(CertificateInvalid):
            door.admit(connection(who.certificate), EVERYONE)


def test_a_certificate_that_was_not_recorded_is_refused(home: ServerHome) -> None:
    key = new_key()
    request = certificate_request(key, "clinic-1")
    certificate = home.authority().sign_request(request, name="clinic-1", role="operator", days=1)
    with FleetDatabase(home.fleet_database) as fleet, pytest.raises(AccessDenied):
        CertificateDoor(fleet).admit(connection(certificate), EVERYONE)


def test_a_better_role_than_the_fleet_s_is_refused(home: ServerHome) -> None:
    who = identity(home, "clinic-1", address="localhost:1")
    request = certificate_request(who.key, "clinic-1")
    better = home.authority().sign_request(request, name="clinic-1", role="operator", days=1)
    with FleetDatabase(home.fleet_database) as fleet:
        fleet.renewed("clinic-1", read_certificate(better).serial)
        with pytest.raises(AccessDenied):
            CertificateDoor(fleet).admit(connection(better), EVERYONE)


def test_limits_count_by_key_not_by_certificate(home: ServerHome) -> None:
    who = identity(home, "clinic-1", address="localhost:1")
    request = certificate_request(who.key, "clinic-1")
    newer = home.authority().sign_request(request, name="clinic-1", role="node", days=2)
    other = Authority.create("other", days=2).sign_request(
        certificate_request(new_key(), "clinic-1"), name="clinic-1", role="node", days=2
    )
    with FleetDatabase(home.fleet_database) as fleet:
        door = CertificateDoor(fleet)
        assert door.key(connection(who.certificate)) == door.key(connection(newer))
        assert door.key(connection(who.certificate)) != door.key(connection(other))


@pytest.mark.parametrize("certificate", [b"", b"nonsense"])
def test_without_a_certificate_there_is_no_key(certificate: bytes, home: ServerHome) -> None:
    with FleetDatabase(home.fleet_database) as fleet, pytest.raises(CertificateInvalid):
        CertificateDoor(fleet).key(connection(certificate))


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:192.0.2.7:50000", "ipv4:192.0.2.7"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:50000", "ipv6:2001:db8:1:2::"),
        ("ipv6:%5B2001:db8:1:2::9%5D:50000", "ipv6:2001:db8:1:2::"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "ipv6:fe80::"),
        ("ipv6:[::ffff:192.0.2.7]:50000", "ipv4:192.0.2.7"),
        ("unix:/tmp/x", "unix:"),
        ("ipv6:nonsense:1", "ipv6:?"),
    ],
)
def test_networks(peer: str, network: str) -> None:
    assert network_of(peer) == network


@given(st.text(max_size=60))
def test_any_peer_has_a_network(peer: str) -> None:
    assert AddressDoor().key(Connection(peer=peer, certificate=b"")) == network_of(peer)
