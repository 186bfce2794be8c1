"""Who exists and who takes part in a round.

Poisson sampling: each client of the population flips its own coin with the probability that the
accountant is told. The size of a cohort is random, and an empty cohort is a real round.

Cyclic cohorts, for correlated noise: the population is dealt into groups that take turns. Nothing
about them is secret, and nothing is claimed for their being drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared import validate
from shared.errors import EmptyPopulation
from shared.privacy.noise import NoiseSource
from shared.seeding import data_rng


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Every client that could take part, by index, and the node that speaks for each.

    Attributes:
        size: number of clients.
        nodes: node id by client index; None where node ids are client indices plus one.
    """

    size: int
    nodes: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty population."""
        if self.size < 1:
            msg = f"population={self.size}, expected at least 1 client."
            raise EmptyPopulation(msg)

    def node(self, client: int) -> int | None:
        """Return the node that speaks for a client, or None while nobody does.

        A client without a node is a dropout like any other: it was sampled, and does not answer.
        """
        return client + 1 if self.nodes is None else self.nodes.get(client)


def sample_cohort(population: int, probability: float, source: NoiseSource) -> list[int]:
    """Draw a Poisson cohort.

    Guarantee:
        Each client is in the cohort independently with ``probability``; the result may be empty.

    Args:
        population: number of clients.
        probability: chance of each client, in ``(0, 1]``; 1 takes everyone.
        source: where the coins come from.

    Returns:
        Client indices in ascending order.
    """
    return [int(i) for i in source.poisson_subsample(population, probability)]


def cyclic_cohort(population: int, groups: int, server_round: int, seed: int) -> list[int]:
    """Return the group whose turn it is.

    Guarantee:
        A client takes part once in any ``groups`` rounds in a row, at most
        ``ceil(rounds / groups)`` times in all, and no cohort is above
        ``ceil(population / groups)``, the public denominator of the mean.

    Edge cases:
        With more groups than clients some cohorts are empty; one group is everyone every round.

    Args:
        population: number of clients.
        groups: b >= 1, the rounds from one turn of a client to its next.
        server_round: from 1.
        seed: the run's seed; deals the population by a public permutation, the same in all rounds.

    Returns:
        Client indices in ascending order.

    Raises:
        InvalidValue: if a number is not an integer >= 1.
    """
    validate.positive_integer(population=population, groups=groups, server_round=server_round)
    dealt = data_rng(seed, "cyclic-cohort").permutation(population)
    return sorted(int(i) for i in dealt[(server_round - 1) % groups :: groups])


def cohort_source(*, seed: int, server_round: int, kind: str) -> NoiseSource:
    """Return the generator of one round's coins.

    Args:
        seed: the run's seed, used only by ``"seeded-simulation"``.
        server_round: the round.
        kind: ``"os-entropy"`` or ``"seeded-simulation"``.
    """
    if kind == "seeded-simulation":
        return NoiseSource.seeded(seed, "cohort", server_round)
    return NoiseSource.from_os()


def within_quota(cohort: Sequence[int], taken: Mapping[int, int], quota: int | None) -> list[int]:
    """Drop clients that have taken part as often as they may (mode example).

    No amplification is claimed for the sampling of clients in that mode, so leaving one out does
    not weaken the others' guarantee.
    """
    if quota is None:
        return list(cohort)
    return [client for client in cohort if taken.get(client, 0) < quota]
