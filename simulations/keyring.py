"""Identities of virtual clients, derived from the run's seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

from shared.errors import SecureAggregationError
from shared.privacy.secagg.keys import Identity, Roster
from shared.seeding import encode_labels

_KEPT = 1 << 14
"""Public keys kept; a cohort is far smaller, whatever the population."""


class SimulatedKeyring:
    """The signing keys of all virtual clients of a run.

    Every process of a simulation derives the same ones, so nothing has to be handed around. They
    protect nobody: whoever knows the seed has them all. A device has its own key in a file.

    Args:
        seed: the run's seed.
        population: number of clients.
    """

    def __init__(self, seed: int, population: int) -> None:
        self._seed = seed
        self._roster = DerivedRoster(seed, population)

    @property
    def roster(self) -> Roster:
        """Return the identity keys of all clients."""
        return self._roster

    def identity(self, client: int) -> Identity:
        """Return the signing key of one client."""
        return _identity(self._seed, client)


class DerivedRoster(Roster):
    """The identity keys of virtual clients, each derived when it is asked for.

    Nothing is stored for a client that never takes part. The keys are those of a plain roster; the
    digest is of the seed and the population, which they follow from.

    Args:
        seed: the run's seed.
        population: number of clients.
    """

    __slots__ = ("_clients", "_seed")

    def __init__(self, seed: int, population: int) -> None:
        self._seed = seed
        self._clients = range(population)
        labels = encode_labels("fedslm-simulated-roster", seed, population)
        self._digest = hashlib.sha256(labels).hexdigest()

    def __contains__(self, client: object) -> bool:
        """Tell whether a client is known."""
        return client in self._clients

    def __iter__(self) -> Iterator[int]:
        """Iterate over the clients, ascending."""
        return iter(self._clients)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self._clients)

    def public_key(self, client: int) -> bytes:
        """Return a client's identity key.

        Raises:
            SecureAggregationError: if the client is not in the roster.
        """
        if client not in self._clients:
            msg = f"client={client} is not in the roster of {len(self)} clients."
            raise SecureAggregationError(msg)
        return _public_key(self._seed, client)


def _identity(seed: int, client: int) -> Identity:
    """Derive one client's key."""
    labels = encode_labels("fedslm-simulated-identity", seed, client)
    return Identity.from_private_bytes(hashlib.sha256(labels).digest())


@lru_cache(maxsize=_KEPT)
def _public_key(seed: int, client: int) -> bytes:
    """Derive one client's public key."""
    return _identity(seed, client).public_key
