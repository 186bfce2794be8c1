"""What IA3 and prompt tuning exclude, each with the reason (:mod:`shared.adaptermethod`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.adaptermethod import IA3
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.errors import Problem

_WHAT = {"ia3": "vectors that rescale activations", "prompt": "vectors in front of a text"}


def method_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield what contradicts an adapter that is no low-rank product."""
    variant = config.lora.variant
    what = _WHAT[variant]
    yield from _aggregation(config, variant, what)
    if config.mixture.adapters > 1:
        yield conflict(
            key="mixture.adapters",
            message=f'cannot be used together with lora.variant "{variant}": gates stand between '
            f"A and B, and {what} have neither.",
            hint="Leave [mixture] out.",
        )
    if config.task.classifies:
        yield conflict(
            key="lora.variant",
            message=f'"{variant}" and classification: the head travels with factors B of pairs.',
            hint='Use "lora" or "rslora".',
        )
    if config.lora.dropout > 0:
        yield conflict(
            key="lora.dropout",
            message=f'has no meaning with lora.variant "{variant}": it drops inputs of A.',
            hint="Set it to 0.",
        )
    if config.performance.clipper == "opacus":
        yield conflict(
            key="performance.clipper",
            message=f'opacus has no gradient by example of {what} (lora.variant "{variant}").',
            hint='Use "fused" or "microbatch", which agree.',
        )


def _aggregation(config: RunConfig, variant: str, what: str) -> Iterator[Problem]:
    """Check how updates become the next adapter."""
    if config.policy not in {"ffa", "fedavg"}:
        yield conflict(
            key="aggregation.policy",
            message=f'{config.policy} cannot be used together with lora.variant "{variant}": it '
            f"handles pairs of factors, and {what} are no pairs.",
            hint='Use "ffa" or "fedavg": both are the mean of the vectors here, which is exact.',
        )
    if config.aggregation.share == "A":
        yield conflict(
            key="aggregation.share",
            message=f'"A" cannot be used together with lora.variant "{variant}": there is no A, so '
            "that nothing would be shared.",
            hint='Set it to "AB".',
        )
    if config.aggregation.refactor_every > 0:
        yield conflict(
            key="aggregation.refactor_every",
            message=f'cannot be used together with lora.variant "{variant}": {what} have no basis '
            "that could be chosen anew.",
            hint="Leave refactor_every out.",
        )
    if config.devices.ranks:
        yield conflict(
            key="devices.ranks",
            message=f'cannot be used together with lora.variant "{variant}": {what} have no rank.',
            hint="Leave devices.ranks out.",
        )
    if variant == IA3 and config.link.down not in {"fp32", "delta"}:
        yield conflict(
            key="link.down",
            message=f'"{config.link.down}" cannot be used together with lora.variant "ia3": its '
            "numbers are near one, and what clients learned would be lost in the rounding of ones.",
            hint='Use "delta", which codes the change since the start.',
        )
