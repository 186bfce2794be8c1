"""Codes of the link that exclude other settings, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.errors import Problem
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig

_ONE_LAYOUT = frozenset({"ffa", "fedavg"})


def link_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every rule about ``[link]`` that a scenario breaks."""
    yield from _under_secure_aggregation(config)
    yield from _at_a_trusted_server(config)
    link = config.link
    if link.feeds_back and config.policy not in _ONE_LAYOUT:
        yield conflict(
            key="link.up",
            message=f'"topk" cannot be used together with aggregation.policy "{config.policy}": '
            "what a client did not send belongs to numbers that its next update may not have.",
            hint='Use "int8" or "int4", or policy "ffa" or "fedavg".',
        )
    if link.entropy and (link.up, link.down) == ("fp32", "fp32"):
        yield conflict(
            key="link.entropy",
            message="packs what is coded, and link.up and link.down are fp32.",
        )


def _under_secure_aggregation(config: RunConfig) -> Iterator[Problem]:
    """Refuse every code of updates beside the grid that is summed."""
    if config.privacy.mode == "client-distributed" and config.link.up != "fp32":
        yield conflict(
            key="link.up",
            message=f'"{config.link.up}" cannot be used together with client-distributed: masked '
            "integers of one common grid are added up; each client's own scales or choice of "
            "numbers would not add, and would show in clear.",
            hint="The grid is a code already; leave link.up out. link.down may be coded.",
        )


def _at_a_trusted_server(config: RunConfig) -> Iterator[Problem]:
    """Refuse what would tell the network, or the clip's quantile, about updates without noise."""
    privacy, link = config.privacy, config.link
    if privacy.mode != "client-central":
        return
    if link.entropy and link.up != "fp32":
        yield conflict(
            key="link.entropy",
            message="cannot be used together with client-central: the length of a packed update "
            "that has no noise yet would tell the network about it.",
            hint="Without entropy every update of a run has the same length.",
        )
    if link.up != "fp32" and privacy.clipping_quantile is not None:
        yield conflict(
            key="link.up",
            message=f'"{link.up}" cannot be used together with clipping_quantile: the clip would '
            "follow the norms of rounded updates.",
            hint="Fix clipping_norm, or send fp32.",
        )
