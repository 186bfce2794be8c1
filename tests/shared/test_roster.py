from __future__ import annotations

import json

import pytest

from shared.errors import SchemaMismatch, SecureAggregationError
from shared.privacy.secagg.keys import Identity
from shared.roster import read_roster, write_roster

KEYS = {client: Identity.from_private_bytes(bytes([client]) * 32).public_key for client in (1, 7)}


def test_a_roster_is_written_and_read() -> None:
    roster = read_roster(write_roster(KEYS).encode())
    assert {client: roster.public_key(client) for client in roster} == KEYS


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"schema": 2, "clients": {}},
        {"schema": 1, "clients": {}, "more": 1},
        {"schema": 1, "clients": []},
        {"schema": 1, "clients": {"one": "00"}},
        {"schema": 1, "clients": {"1": "xyz"}},
        {"schema": 1, "clients": {"1": 5}},
        {"schema": 1, "clients": {"1": "00"}},
    ],
)
def test_what_is_no_roster_is_refused(value: object) -> None:
    with pytest.raises(SchemaMismatch):
        read_roster(json.dumps(value).encode())


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(SchemaMismatch):
        read_roster(b"\xff{")


def test_two_clients_with_one_key_are_refused() -> None:
    with pytest.raises(SecureAggregationError):
        read_roster(write_roster({1: KEYS[1], 2: KEYS[1]}).encode())
