"""What a mix of devices must be: known profiles, whose shares are a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shared.config import RunConfig
from shared.devices import PROFILES
from shared.errors import Problem
from shared.registry import suggestion

_ROUNDING = 1e-6


def device_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield what is wrong with the section ``[devices]``."""
    mix, shares = config.devices.mix, config.devices.shares
    for name in shares:
        if name not in PROFILES:
            yield Problem(
                key="devices.mix",
                message=f"names {name!r}, expected profiles among: {', '.join(PROFILES)}.",
                hint=suggestion(name, PROFILES),
            )
    if len(shares) != len(mix):
        yield Problem(key="devices.mix", message="names a profile twice, expected each once.")
    elif shares and not math.isclose(sum(shares.values()), 1.0, abs_tol=_ROUNDING):
        yield Problem(
            key="devices.mix",
            message=f"has shares that sum to {sum(shares.values()):g}, expected 1.",
        )
