"""A device's identity is its own and stays, and the roster is the owner's."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from client.keyring import IDENTITY, DeviceKeyring, load_identity, read_roster
from client.policy import ClientPolicy, SecureAggregationLimits
from shared.errors import LedgerError, PolicyRefused, SchemaMismatch, SecureAggregationError
from tests.client.device import write_policy

OTHER = "cc" * 32


def limits(folder: Path) -> SecureAggregationLimits:
    found = ClientPolicy.load(write_policy(folder, "client-distributed")).secure_aggregation
    assert found is not None
    return found


def enroll(folder: Path, **clients: str) -> None:
    keys = {name.removeprefix("c"): key for name, key in clients.items()}
    text = json.dumps({"schema": 1, "clients": keys})
    (folder / "roster.json").write_text(text, encoding="utf-8")


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


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"schema": 2, "clients": {}},
        {"schema": 1, "clients": []},
        {"schema": 1, "clients": {"x": OTHER}},
        {"schema": 1, "clients": {"0": "xyz"}},
        {"schema": 1, "clients": {"0": 7}},
        {"schema": 1, "clients": {"0": "ab"}},
        {"schema": 1, "clients": {}, "more": 1},
    ],
    ids=str,
)
def test_what_is_no_roster_is_refused(value: Any) -> None:
    with pytest.raises(SchemaMismatch):
        read_roster(json.dumps(value).encode())


@pytest.mark.parametrize("contents", [b"", b"{", b"\xff"])
def test_what_is_no_json_is_refused(contents: bytes) -> None:
    with pytest.raises(SchemaMismatch):
        read_roster(contents)


def test_one_key_is_one_client(tmp_path: Path) -> None:
    enroll(tmp_path, c0=OTHER, c1=OTHER)
    with pytest.raises(SecureAggregationError, match="have one identity key"):
        read_roster((tmp_path / "roster.json").read_bytes())


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    (tmp_path / IDENTITY).write_bytes(b"short")
    with pytest.raises(SchemaMismatch):
        load_identity(tmp_path)
    with pytest.raises(LedgerError, match="cannot be used"):
        load_identity(tmp_path / IDENTITY / "below-a-file")
