"""Keys of ``[aggregation]`` that say what the server does about clients that attack.

Which rule needs how many updates is public arithmetic that the scenario's rules and the server
both ask for, so it is here.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from pydantic import Field, Strict

from shared.configtypes import NonNegativeInt, PositiveReal, Section

RobustName = Literal["mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"]
Attackers = NonNegativeInt | Annotated[float, Strict(), Field(ge=0, lt=0.5)]

COUNTING: Final[frozenset[RobustName]] = frozenset({"trimmed-mean", "krum", "multi-krum"})
"""Rules that cannot be computed without a number of attackers."""

_ROUNDING: Final = 1e-9
_KRUM: Final[frozenset[RobustName]] = frozenset({"krum", "multi-krum"})


class RobustKeys(Section):
    """What bounds how far a few clients can pull the adapter."""

    robust: RobustName = Field(
        default="mean", description="how updates become one; all but mean withstand some attackers"
    )
    attackers: Attackers | None = Field(
        default=None,
        description="assumed attackers among a round's updates: a count (2) or a share (0.2)",
    )
    norm_bound: PositiveReal | None = Field(
        default=None,
        description="L2 norm to which longer updates are scaled down (modes none and example)",
    )


def attackers_among(assumed: float | None, updates: int) -> int:
    """Return how many of some updates a rule takes for an attacker's.

    Args:
        assumed: a count (int), a share (float; rounded up), or None for nothing assumed.
        updates: how many there are.
    """
    if assumed is None:
        return 0
    if isinstance(assumed, int):
        return assumed
    # 7 % of 100 are 7, and 0.07 * 100 is a little more.
    return math.ceil(assumed * updates - _ROUNDING)


def fewest_updates(rule: RobustName, attackers: int) -> int:
    """Return how many updates a rule needs to withstand so many attackers.

    ``2 f + 3`` for Krum (Blanchard et al. 2017), a majority of honest clients (``2 f + 1``) for the
    other rules, 1 for the mean, which withstands nobody.
    """
    if rule == "mean":
        return 1
    return 2 * attackers + (3 if rule in _KRUM else 1)
