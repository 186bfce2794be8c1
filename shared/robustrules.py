"""Which robust aggregation goes with which privacy mode and policy, and why not with others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.configrobust import COUNTING, attackers_among, fewest_updates
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.errors import Problem


def robust_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield every rule about robust aggregation that a scenario breaks."""
    aggregation, mode = config.aggregation, config.privacy.mode
    if aggregation.norm_bound is not None and mode.startswith("client-"):
        yield conflict(
            key="aggregation.norm_bound",
            message=f"cannot be used together with {mode}: privacy.clipping_norm bounds every "
            "update there, and the noise is calibrated to it.",
            hint="Leave norm_bound out.",
        )
    if config.buffer.used and (aggregation.robust, aggregation.norm_bound) != ("mean", None):
        yield conflict(
            key="aggregation.robust",
            message="robust rules and norm_bound cannot be used together with buffer.size: what "
            "is buffered is weighted by its age, and no rule here knows weights.",
            hint="Leave buffer out, or robust and norm_bound.",
        )
    if aggregation.robust == "mean":
        if aggregation.attackers is not None:
            yield conflict(
                key="aggregation.attackers",
                message='has no effect with robust="mean", which withstands no attacker.',
                hint='Choose a rule, such as "trimmed-mean", or leave attackers out.',
            )
        return
    yield from _mode(config)
    yield from _attackers(config)


def _mode(config: RunConfig) -> Iterator[Problem]:
    """Check that there is something that a rule may be applied to."""
    rule, mode = config.aggregation.robust, config.privacy.mode
    if mode == "client-central":
        yield conflict(
            key="aggregation.robust",
            message=f'"{rule}" cannot be used together with {mode}: one client may move it by '
            "more than clip / cohort, for which the noise is calibrated.",
            hint="The clip bounds what one client can do there; leave robust out.",
        )
    if mode == "client-distributed":
        yield conflict(
            key="aggregation.robust",
            message=f'"{rule}" cannot be used together with {mode}: the server sees the sum of '
            "the updates and none of them.",
            hint="Leave robust out. docs/bad-actors.md says what bounds a client there.",
        )
    if not config.policy_facts.linear:
        yield conflict(
            key="aggregation.robust",
            message=f'"{rule}" cannot be used together with policy "{config.policy}": its server '
            "step multiplies factors, and a rule over factors says nothing about products.",
            hint='Use policy "ffa" or "fedavg".',
        )


def _attackers(config: RunConfig) -> Iterator[Problem]:
    """Check that the rule is told what it must withstand, and that a round can be large enough."""
    aggregation, clients = config.aggregation, config.clients
    rule = aggregation.robust
    if aggregation.attackers is None and rule in COUNTING:
        yield conflict(
            key="aggregation.attackers",
            message=f'"{rule}" needs it; no default.',
            hint="Say how many attackers a round may have: a count (2) or a share (0.2).",
        )
        return
    expected = clients.population if clients.cohort is None else clients.cohort
    if expected is None:
        return
    attackers = attackers_among(aggregation.attackers, int(expected))
    needed = fewest_updates(rule, attackers)
    if expected < needed:
        yield conflict(
            key="aggregation.attackers",
            message=f'"{rule}" needs {needed} updates against {attackers} attackers, and a round '
            f"has {expected:g} clients.",
            hint="Raise clients.cohort, or assume fewer attackers.",
        )
