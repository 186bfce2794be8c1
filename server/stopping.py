"""When a run ends before its last planned round.

A pure function of the finished rounds' metrics: a run that is resumed decides what it would have
decided. Clients' held-out losses are looked at, so it exists in mode ``none`` alone
(:mod:`shared.schedulerules` refuses the rest): under privacy each look would have to be charged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shared.configstopping import StoppingSection


def should_stop(metrics: Sequence[Mapping[str, Any]], stopping: StoppingSection) -> bool:
    """Tell whether the last ``patience`` measured rounds were no better than one before them.

    Args:
        metrics: lines of the finished rounds, in order; those without a loss do not count.
        stopping: the scenario's section.
    """
    if stopping.patience == 0:
        return False
    losses = [float(r["loss"]) for r in metrics if isinstance(r.get("loss"), int | float)]
    best, stale = math.inf, 0
    for loss in losses:
        if loss < best - stopping.min_improvement:
            best, stale = loss, 0
        else:
            stale += 1
    return stale >= stopping.patience
