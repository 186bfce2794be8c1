"""Which settings go with clients of different ranks, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.adaptermethod import METHODS
from shared.errors import Problem
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig


def may_mix_ranks(config: RunConfig) -> bool:
    """Tell whether a scenario's way to aggregate takes clients of different ranks."""
    ranked = config.lora.variant not in METHODS
    return ranked and config.policy_facts.exact and config.aggregation.robust == "mean"


def rank_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield every rule about mixed ranks that a scenario breaks."""
    if not config.devices.ranks:
        if config.aggregation.columns != "cohort":
            yield conflict(
                key="aggregation.columns",
                message="has no effect without devices.ranks: every client holds every column.",
                hint="Say who trains which rank in devices.ranks, or leave columns out.",
            )
        return
    yield from _ranks(config)
    yield from _aggregation(config)


def _ranks(config: RunConfig) -> Iterator[Problem]:
    """Check the ranks themselves, and that everybody can tell whose is whose."""
    shares, r = config.devices.shares, config.lora.r
    for name in sorted(set(config.devices.ranks) - set(shares)):
        yield Problem(
            key="devices.ranks",
            message=f"names {name!r}, which is not in devices.mix.",
            hint="Give it a share of the clients, or leave its rank out.",
        )
    over = {n: rank for n, rank in config.devices.ranks.items() if rank > r}
    for name, rank in sorted(over.items()):
        yield Problem(
            key="devices.ranks",
            message=f"gives {name!r} rank {rank}, expected at most lora.r ({r}).",
        )
    if shares and max(config.devices.ranks_within(r).values()) < r:
        yield conflict(
            key="devices.ranks",
            message=f"leaves nobody with lora.r ({r}): nobody would train its last columns.",
            hint="Set lora.r to the largest of the ranks, and lora.alpha so that alpha / r stays.",
        )
    if config.clients.population is None:
        yield conflict(
            key="clients.population",
            message="is not said, and devices.ranks deals ranks to a population: server and "
            "devices must deal alike, without looking at data.",
        )


def _aggregation(config: RunConfig) -> Iterator[Problem]:
    """Check what turns updates of different ranks into one."""
    policy, aggregation = config.policy_facts, config.aggregation
    if not policy.exact:
        yield conflict(
            key="devices.ranks",
            message=f"cannot be used together with policy {policy.name!r}: it takes means of A and "
            "of B apart, and rows of A that half of the clients lack would be halved and "
            "multiplied with halved columns of B.",
            hint='Use "ffa" or "rolora" (one factor moves, the mean of products is exact), or '
            '"flexlora".',
        )
    if aggregation.columns == "holders" and not policy.linear:
        yield conflict(
            key="aggregation.columns",
            message=f'"holders" cannot be used together with policy {policy.name!r}: the mean of '
            "products has no columns that a client holds or lacks.",
        )
    if aggregation.robust != "mean":
        yield conflict(
            key="aggregation.robust",
            message=f'"{aggregation.robust}" cannot be used together with devices.ranks: the zeros '
            "of clients that lack a column would count as honest updates of it.",
            hint="Leave robust out; norm_bound works with ranks.",
        )
