"""The table of the benchmark ``quality``: medians and ranges over seeds, and the Pareto fronts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from simulations.benchmarks.protocol import Check, Scalar
from simulations.benchmarks.quality_arms import Case
from simulations.benchmarks.quality_runs import Measured

Row = dict[str, Scalar]
Point = tuple[float, float]

COSTS = ("epsilon", "bytes", "seconds")
WITHIN_CAP = 1.0


def table(found: Sequence[Measured], refused: Iterable[Case]) -> tuple[Row, ...]:
    """Return one row for each arm, with the fronts marked, then one for each refused arm."""
    arms: dict[tuple[str, ...], list[Measured]] = {}
    for one in found:
        arms.setdefault(one.case.arm, []).append(one)
    # Seeds are the outermost loop of the runs: bring the arms of a scenario together again.
    names = dict.fromkeys(one.case.scenario for one in found)
    rows = [_row(runs) for name in names for arm, runs in arms.items() if arm[0] == name]
    for name in names:
        _mark([row for row in rows if row["scenario"] == name])
    reasons = {case.arm: case for case in refused}
    return (*rows, *({**_head(case), "refused": case.refusal} for case in reasons.values()))


def caps_kept(found: Sequence[Measured]) -> tuple[Check, ...]:
    """Return for each scenario the largest share of its cap that a private run spent."""
    shares: dict[str, float] = {}
    for one in found:
        if one.epsilon is not None and one.cap is not None:
            name = one.case.scenario
            shares[name] = max(shares.get(name, 0.0), one.epsilon / one.cap)
    return tuple(
        Check(
            name=f"{name}: epsilon spent over its cap", measured=share, limit=WITHIN_CAP, unit="x"
        )
        for name, share in shares.items()
    )


def front(points: Sequence[Point]) -> list[bool]:
    """Tell which points no other one beats: none as good or better in both, and better in one.

    Args:
        points: loss and cost; of both, less is better. One that is not a number is on no front.
    """
    kept = [False] * len(points)
    last: Point | None = None
    real = (index for index, point in enumerate(points) if not any(map(math.isnan, point)))
    # In the order of losses, a point is on the front if it is cheaper than all before it.
    for index in sorted(real, key=lambda index: points[index]):
        if last is None or points[index] == last or points[index][1] < last[1]:
            kept[index] = True
            last = points[index]
    return kept


def _row(runs: Sequence[Measured]) -> Row:
    """Return the row of one arm."""
    first = runs[0]
    spent = [run.epsilon for run in runs if run.epsilon is not None]
    return {
        **_head(first.case),
        "mode": first.mode,
        "epsilon_spent": max(spent) if spent else None,
        "delta": first.delta,
        "unit": first.unit,
        "relation": first.relation,
        "releases": max(run.releases for run in runs),
        "seeds": len(runs),
        "loss_before": statistics.median(run.loss_before for run in runs),
        **_spread("loss", [run.loss for run in runs]),
        "up_bytes": max(run.up for run in runs),
        "down_bytes": max(run.down for run in runs),
        "bytes": statistics.median(run.moved for run in runs),
        **_spread("seconds", [run.seconds for run in runs]),
    }


def _head(case: Case) -> Row:
    """Return the columns that name an arm."""
    return {"scenario": case.scenario, **case.choices, "epsilon": case.epsilon}


def _spread(name: str, values: Sequence[float]) -> Row:
    """Return the median and the range."""
    return {
        name: statistics.median(values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def _mark(rows: Sequence[Row]) -> None:
    """Mark the fronts of one scenario; bytes and seconds compare arms of the same epsilon."""
    for cost in COSTS:
        groups: dict[Scalar, list[Row]] = {}
        for row in rows:
            groups.setdefault(None if cost == "epsilon" else row["epsilon"], []).append(row)
        for group in groups.values():
            points = [(number(row["loss"]), number(row[cost])) for row in group]
            for row, on in zip(group, front(points), strict=True):
                row[f"front_{cost}"] = on


def number(value: Scalar) -> float:
    """Return a cost as a number; no epsilon at all is an infinite one."""
    return math.inf if value is None else float(value)
