"""New certificates and secrets for a server: of the same authority, private, and in the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.fleetdb import FleetDatabase
from server.home import ServerConfig, ServerHome
from shared.pki import read_certificate
from simulations.cli import run


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return ServerHome.create(tmp_path / "server", ServerConfig(name="north"))


def test_a_new_certificate_is_of_the_same_authority(home: ServerHome) -> None:
    before = read_certificate(home.server_certificate.read_bytes())
    authority = home.ca_certificate.read_bytes()
    assert run(["server", "rotate", "certificate", "--dir", str(home.path)]) == 0
    after = read_certificate(home.server_certificate.read_bytes())
    assert (after.serial, after.public_key) != (before.serial, before.public_key)
    assert home.ca_certificate.read_bytes() == authority
    assert home.server_key.stat().st_mode & 0o777 == 0o600
    with FleetDatabase(home.fleet_database) as database:
        assert "rotated" in [event.kind for event in database.events(5)]


def test_new_secrets_are_others_and_private(home: ServerHome) -> None:
    paths = (home.session_key, home.superexec_secret, home.control_secret)
    before = [path.read_bytes() for path in paths]
    kept = [path.read_bytes() for path in (home.ledger_key, home.adapter_key)]
    assert run(["server", "rotate", "secrets", "--dir", str(home.path), "--json"]) == 0
    after = [path.read_bytes() for path in paths]
    assert [len(old) for old in before] == [len(new) for new in after]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert [path.read_bytes() for path in (home.ledger_key, home.adapter_key)] == kept


def test_other_keys_are_not_rotated(home: ServerHome) -> None:
    assert run(["server", "rotate", "ledger", "--dir", str(home.path)]) == 2
