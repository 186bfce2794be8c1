"""Identities of virtual clients, derived from the run's seed."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from shared.privacy.secagg.keys import Identity, Roster
from shared.seeding import encode_labels


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
        self._population = population

    @property
    def roster(self) -> Roster:
        """Return the identity keys of all clients; made once per process."""
        return _roster(self._seed, self._population)

    def identity(self, client: int) -> Identity:
        """Return the signing key of one client."""
        return _identity(self._seed, client)


def _identity(seed: int, client: int) -> Identity:
    """Derive one client's key."""
    labels = encode_labels("fedslm-simulated-identity", seed, client)
    return Identity.from_private_bytes(hashlib.sha256(labels).digest())


@lru_cache(maxsize=4)
def _roster(seed: int, population: int) -> Roster:
    """Derive everybody's public keys."""
    return Roster({client: _identity(seed, client).public_key for client in range(population)})
