"""What a mixture of adapters excludes, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.errors import Problem
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig


def mixture_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield what contradicts the section ``[mixture]``."""
    mixture = config.mixture
    if mixture.adapters == 1:
        if mixture.router != "trained":
            yield conflict(key="mixture.router", message="one adapter has no router.")
        return
    if config.policy not in {"ffa", "fedavg"}:
        yield conflict(
            key="mixture.adapters",
            message=f"a mixture and {config.policy}: it takes factors in pairs, and the router "
            "is no pair; gates stand between A and B, so that no product B A is averaged.",
            hint='Use aggregation.policy "ffa" or "fedavg".',
        )
    if mixture.router == "frozen" and config.policy != "ffa":
        yield conflict(
            key="mixture.router",
            message=f"a frozen router and {config.policy}: what is frozen here is what ffa "
            "freezes, and its mean is exact only there.",
            hint='Set aggregation.policy to "ffa", or router to "trained".',
        )
    if config.aggregation.refactor_every > 0:
        yield conflict(
            key="aggregation.refactor_every",
            message="the new basis would mix the rows of several adapters, which one gate weighs.",
            hint="Leave refactor_every out.",
        )
    if config.aggregation.share == "A":
        yield conflict(
            key="aggregation.share",
            message="sharing A alone keeps B and the router with each client: nothing is left that "
            "chooses for all.",
            hint='Set it to "AB".',
        )
    if config.devices.ranks:
        yield conflict(
            key="devices.ranks",
            message="a client of a smaller rank would lack whole adapters of the mixture, and its "
            "gates would still choose them.",
            hint="Leave devices.ranks out.",
        )
    if config.task.classifies:
        yield conflict(
            key="mixture.adapters",
            message="a mixture and classification: gates look back from each token, and an "
            "encoder classifies by its first.",
        )
    if config.performance.clipper == "opacus":
        yield conflict(
            key="performance.clipper",
            message="opacus hooks PEFT's own layers, which have no gates.",
            hint='Use "fused" or "microbatch", which agree.',
        )
