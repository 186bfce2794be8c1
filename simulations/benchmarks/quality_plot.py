"""The frontiers of the benchmark ``quality``: loss by epsilon, bytes and seconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulations.benchmarks.protocol import BenchResult, Scalar
from simulations.benchmarks.quality_arms import choices, optional, word
from simulations.benchmarks.quality_rows import COSTS, Row, number
from simulations.svg import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = ((BLUE, "o"), (VERMILLION, "D"), (GREEN, "s"), (PURPLE, "^"), (INK, "v"), (GREY, "P"))
_LABELS = {
    "bytes": "kB up and down, by client, whole run",
    "seconds": "seconds of rounds, whole run",
}
_NONE_FACTOR = 4.0


def draw_frontiers(result: BenchResult) -> str:
    """Return one ``<svg>`` element: a line of three plots for each scenario.

    A point is the median over seeds, its bar the range; filled points are on the front, which the
    grey lines follow. Beside a point stands its epsilon.
    """
    rows = [row for row in map(dict, result.rows) if row.get("loss") is not None]
    names = list(dict.fromkeys(str(row["scenario"]) for row in rows))
    kinds = list(dict.fromkeys(kind_of(row) for row in rows))

    def draw(axes: Axes) -> None:
        figure = axes.get_figure(root=True)
        axes.remove()
        if figure is None or not rows:
            return
        grid = figure.subplots(len(names), len(COSTS), squeeze=False, sharey="row")
        for line, name in zip(grid, names, strict=True):
            mine = [row for row in rows if row["scenario"] == name]
            for panel, cost in zip(line, COSTS, strict=True):
                _panel(panel, mine, cost, kinds)
            line[0].set_ylabel(f"{name}\nheld-out loss (nats per token)")
        _explain(figure, kinds)

    return render(draw, size=(11.0, 0.5 + 3.0 * max(1, len(names))))


def kind_of(row: Row) -> str:
    """Return the policy of a row in words, and the code of its updates where they are coded."""
    return ", ".join(str(row[field]) for field in (*choices(), *optional()) if row.get(field))


def _panel(axes: Axes, rows: Sequence[Row], cost: str, kinds: Sequence[str]) -> None:
    """Draw the loss of one scenario by one cost."""
    scale = 1e-3 if cost == "bytes" else 1.0
    most = max((number(row["epsilon"]) for row in rows if row["epsilon"] is not None), default=1.0)
    for epsilon in dict.fromkeys(None if cost == "epsilon" else row["epsilon"] for row in rows):
        group = rows if cost == "epsilon" else [row for row in rows if row["epsilon"] == epsilon]
        shown = sorted(
            (_place(row, cost, most) * scale, number(row["loss"]))
            for row in group
            if row[f"front_{cost}"]
        )
        axes.plot([x for x, _ in shown], [y for _, y in shown], color=GREY, linewidth=1.2, zorder=1)
    for row in rows:
        _point(axes, row, (_place(row, cost, most) * scale, number(row["loss"])), cost, kinds)
    axes.set_xlabel(_guarantee(rows) if cost == "epsilon" else _LABELS[cost])
    axes.margins(x=0.12, y=0.12)
    if cost == "epsilon":
        axes.set_xscale("log")
        marks: list[Scalar] = list(dict.fromkeys(row["epsilon"] for row in rows))
        places = [most * _NONE_FACTOR if mark is None else number(mark) for mark in marks]
        texts = ["none" if mark is None else word(number(mark)) for mark in marks]
        axes.set_xticks(places, labels=texts)
        axes.minorticks_off()


def _guarantee(rows: Sequence[Row]) -> str:
    """Return what an epsilon of one scenario is about."""
    private = [row for row in rows if row["delta"] is not None]
    if not private:
        return "epsilon"
    return f"epsilon for one {private[0]['unit']} at delta {number(private[0]['delta']):g}"


def _point(
    axes: Axes, row: Row, place: tuple[float, float], cost: str, kinds: Sequence[str]
) -> None:
    """Draw one row: its median, its range, and its epsilon."""
    colour, marker = _STYLES[kinds.index(kind_of(row)) % len(_STYLES)]
    x, y = place
    below, above = y - number(row["loss_min"]), number(row["loss_max"]) - y
    sides = None
    if cost == "seconds":
        sides = [[x - number(row["seconds_min"])], [number(row["seconds_max"]) - x]]
    axes.errorbar(
        x,
        y,
        yerr=[[below], [above]],
        xerr=sides,
        fmt=marker,
        color=colour,
        markersize=6,
        markerfacecolor=colour if row[f"front_{cost}"] else "white",
        markeredgewidth=1.4,
        elinewidth=1.2,
    )
    if cost != "epsilon":
        text = "none" if row["epsilon"] is None else word(number(row["epsilon"]))
        axes.annotate(text, place, xytext=(6, 3), textcoords="offset points", fontsize=8.5)


def _place(row: Row, cost: str, most: float) -> float:
    """Return where a row stands on the axis of a cost; no privacy is right of every epsilon."""
    value = number(row[cost])
    return value if math.isfinite(value) else most * _NONE_FACTOR


def _explain(figure: Figure, kinds: Sequence[str]) -> None:
    """Put one legend above all plots."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6, label=kind)
        for kind, (colour, marker) in zip(kinds, itertools.cycle(_STYLES), strict=False)
    ]
    for label, inside in (("on the front", GREY), ("beaten", "white")):
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                marker="o",
                linestyle="",
                markersize=6,
                markerfacecolor=inside,
                label=label,
            )
        )
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
