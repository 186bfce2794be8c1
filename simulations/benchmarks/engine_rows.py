"""Rows of the benchmark ``engine``: medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from simulations.benchmarks.protocol import Scalar

Row = dict[str, Scalar]


def row_of_rounds(case: str, clients: int, found: Mapping[str, list[float]]) -> Row:
    """Return the row of our engine: medians over the rounds after the first, if there are any."""
    seconds, central = list(found["rounds"]), list(found["central"])
    timed = slice(1 if len(seconds) > 1 else 0, None)
    middle = statistics.median(seconds[timed])
    row: Row = {
        "case": case,
        "clients": clients,
        "timed": len(seconds[timed]),
        **spread(seconds),
        "clients_per_s": round(clients / middle, 2),
        "cold_s": round(seconds[0], 3),
    }
    if central:
        ratios = [a / b for a, b in zip(seconds[timed], central[timed], strict=True)]
        row |= {
            "central_s": round(statistics.median(central[timed]), 4),
            "over_central": round(statistics.median(ratios), 4),
            "ratio_min": round(min(ratios), 4),
            "ratio_max": round(max(ratios), 4),
        }
    return row


def spread(seconds: Sequence[float]) -> Row:
    """Return median, least and most seconds of the rounds after the first, if there are any."""
    kept = seconds[1:] or seconds
    return {
        "round_s": round(statistics.median(kept), 4),
        "round_s_min": round(min(kept), 4),
        "round_s_max": round(max(kept), 4),
    }
