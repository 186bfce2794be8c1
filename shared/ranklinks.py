"""The codes of the adapter on its way to clients of different ranks: one for each rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.link import Downlink

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.lora import Vector
    from shared.mixedranks import MixedRanks


def first_links(
    config: RunConfig, start: Vector, ranks: MixedRanks | None, *, r: int
) -> dict[int, Downlink]:
    """Return the code of the adapter by rank.

    A change is against the rank's part of the factors that everybody makes from the public seed:
    devices know those, and not a warm start.

    Args:
        config: the scenario.
        start: those factors that move, of the largest rank.
        ranks: of the clients; None where all have the largest.
        r: the largest rank.
    """
    found = {r: Downlink(config.link, start)}
    if ranks is not None:
        for rank in ranks.counts:
            found[rank] = Downlink(config.link, ranks.narrow(start, rank, config.trained_kinds))
    return found
