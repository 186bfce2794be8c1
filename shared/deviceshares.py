"""Which client of a population has which kind of device: public, from shares and a seed alone."""

from __future__ import annotations

from collections.abc import Mapping

from shared.seeding import data_rng


def assigned(shares: Mapping[str, float], *, population: int, seed: int) -> tuple[str, ...]:
    """Return the profile of each client.

    Counts are the shares of the population by largest remainders, so that they do not depend on
    luck; which client has which is drawn from a public stream of the run's seed.

    Args:
        shares: by profile, summing to 1.
        population: number of clients.
        seed: of the run.
    """
    exact = {name: share * population for name, share in sorted(shares.items())}
    counts = {name: int(value) for name, value in exact.items()}
    left = population - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[:left]:
        counts[name] += 1
    names = [name for name, count in counts.items() for _ in range(count)]
    order = data_rng(seed, "devices").permutation(population)
    return tuple(names[index] for index in order)
