"""A device's identity is its own and stays, and the roster is the owner's."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from client.keyring import IDENTITY, DeviceKeyring, load_identity
from client.policy import ClientPolicy, SecureAggregationLimits
from shared.errors import LedgerError, PolicyRefused, SchemaMismatch, SecureAggregationError
from shared.roster import write_roster
from tests.client.device import write_policy

OTHER = "cc" * 32


def limits(folder: Path) -> SecureAggregationLimits:
    found = ClientPolicy.load(write_policy(folder, "client-distributed")).secure_aggregation
    assert found is not None
    return found


def enroll(folder: Path, **clients: str) -> None:
    keys = {int(name.removeprefix("c")): bytes.fromhex(key) for name, key in clients.items()}
    (folder / "roster.json").write_text(write_roster(keys), encoding="utf-8")


def test_an_identity_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "state"
    first = load_identity(folder)
    assert load_identity(folder).public_key == first.public_key
    assert load_identity(tmp_path / "other").public_key != first.public_key
    assert stat.S_IMODE((folder / IDENTITY).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [IDENTITY]


def test_a_device_speaks_for_the_client_that_the_roster_says(tmp_path: Path) -> None:
    own = load_identity(tmp_path)
    enroll(tmp_path, c3=own.public_key.hex(), c4=OTHER)
    keyring = DeviceKeyring(tmp_path, limits(tmp_path))
    assert keyring.identity(3).public_key == own.public_key
    assert list(keyring.roster) == [3, 4]
    for client in (4, 5):
        with pytest.raises(PolicyRefused, match=f"this device as client {client}"):
            keyring.identity(client)


def test_a_roster_that_was_replaced_counts_at_once(tmp_path: Path) -> None:
    own = load_identity(tmp_path)
    enroll(tmp_path, c0=own.public_key.hex())
    keyring = DeviceKeyring(tmp_path, limits(tmp_path))
    assert list(keyring.roster) == [0]
    enroll(tmp_path, c0=own.public_key.hex(), c1=OTHER)
    assert list(keyring.roster) == [0, 1]
    (tmp_path / "roster.json").unlink()
    with pytest.raises(PolicyRefused, match="cannot be read"):
        keyring.identity(0)


def test_a_roster_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    keyring = DeviceKeyring(tmp_path, limits(tmp_path))
    (tmp_path / "roster.json").write_bytes(b"{")
    with pytest.raises(SchemaMismatch):
        keyring.identity(0)
    enroll(tmp_path, c0=OTHER, c1=OTHER)
    with pytest.raises(SecureAggregationError, match="have one identity key"):
        keyring.identity(0)


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    (tmp_path / IDENTITY).write_bytes(b"short")
    with pytest.raises(SchemaMismatch):
        load_identity(tmp_path)
    with pytest.raises(LedgerError, match="cannot be used"):
        load_identity(tmp_path / IDENTITY / "below-a-file")
