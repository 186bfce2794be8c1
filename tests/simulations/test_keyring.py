"""Identities of virtual clients: a roster like any other, without one entry a client."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from shared.errors import SecureAggregationError
from shared.privacy.secagg.keys import Roster
from simulations.keyring import SimulatedKeyring

CLIENTS = 7


def test_the_keys_are_those_of_a_plain_roster() -> None:
    keyring = SimulatedKeyring(3, CLIENTS)
    keys = {client: keyring.identity(client).public_key for client in range(CLIENTS)}
    plain, derived = Roster(keys), keyring.roster
    assert list(derived) == list(plain)
    assert len(derived) == len(plain)
    for client in (*range(CLIENTS), -1, CLIENTS):
        assert (client in derived) == (client in plain)
    for client in range(CLIENTS):
        assert derived.public_key(client) == plain.public_key(client)
        signature = keyring.identity(client).sign("share", b"context", client, b"content")
        derived.verify("share", b"context", client, signature, b"content")
        with pytest.raises(SecureAggregationError):
            derived.verify("share", b"context", (client + 1) % CLIENTS, signature, b"content")


@pytest.mark.parametrize("client", [-1, CLIENTS])
def test_a_client_that_does_not_exist_is_refused_as_by_a_plain_roster(client: int) -> None:
    with pytest.raises(SecureAggregationError, match=f"client={client} is not in the roster of 7"):
        SimulatedKeyring(3, CLIENTS).roster.public_key(client)


def test_the_digest_tells_runs_and_populations_apart() -> None:
    made = [(3, 7), (3, 7), (4, 7), (3, 8)]
    digests = [SimulatedKeyring(seed, clients).roster.digest() for seed, clients in made]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert all(len(digest) == 64 for digest in digests)


def test_a_million_clients_cost_what_seven_cost() -> None:
    """A plain roster of them would take minutes and hundreds of megabytes."""
    tracemalloc.start()
    began = time.process_time()
    roster = SimulatedKeyring(3, 1_000_000).roster
    assert len(roster.public_key(999_999)) == 32
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1.0
    assert peak < 1_000_000
