"""Which clients of a simulation attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.seeding import data_rng

if TYPE_CHECKING:
    from shared.config import RunConfig


def attackers_of(config: RunConfig, *, population: int) -> frozenset[int]:
    """Return the clients that attack: a share of those with text, rounded, drawn by the run's seed.

    The stream is public and the same for every kind of attack and every defence, so that runs that
    differ in those alone have the same attackers.

    Args:
        config: the scenario, with its ``[attack]``.
        population: number of clients, canary clients (the last ones, which do not attack) included
            if the scenario has any.
    """
    attack = config.attack
    clients = population - config.audit.client_canaries
    count = round(attack.share * clients) if attack.used else 0
    if count == 0:
        return frozenset()
    rng = data_rng(config.run.seed, "attack", "clients")
    return frozenset(int(i) for i in rng.choice(clients, size=count, replace=False))
