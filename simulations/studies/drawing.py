"""Parts of the studies' plots: points with spread, labels, and the line of chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from server.audit.ranking import CHANCE_BITS
from simulations.studies.protocol import Row
from simulations.svg import BLUE, GREY, INK, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (5.6, 3.5)


def chance_bits(axes: Axes) -> None:
    """Draw the mean exposure of secrets that the model never saw."""
    axes.axhline(CHANCE_BITS, color=GREY, linestyle=(0, (4, 3)), linewidth=1.4)
    axes.annotate(
        "chance",
        (0, CHANCE_BITS),
        xycoords=("axes fraction", "data"),
        xytext=(3, -3),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=GREY,
    )


def explain(axes: Axes) -> None:
    """Put the legend above the plot, if there is anything to explain."""
    if axes.get_legend_handles_labels()[0]:
        legend(axes)


def present(rows: Sequence[Row], *keys: str) -> list[Row]:
    """Return the rows that have a value in every one of some columns."""
    return [row for row in rows if all(row.mean(key) is not None for key in keys)]


def points(
    axes: Axes,
    rows: Sequence[Row],
    x: str,
    y: str,
    *,
    colour: str = BLUE,
    line: bool = False,
    marker: str = "o",
    label: str | None = None,
) -> None:
    """Draw one point a row, with one standard deviation over seeds each way.

    Rows without a value in either column are left out.
    """
    kept = present(rows, x, y)
    if not kept:
        return
    axes.errorbar(
        [row.mean(x) or 0.0 for row in kept],
        [row.mean(y) or 0.0 for row in kept],
        xerr=[row.sd(x) for row in kept],
        yerr=[row.sd(y) for row in kept],
        color=colour,
        marker=marker,
        markersize=5.5,
        linestyle="-" if line else "none",
        linewidth=1.6,
        elinewidth=1.1,
        capsize=2.5,
        label=label,
    )


def name_points(
    axes: Axes, rows: Sequence[Row], x: str, y: str, *, text: Callable[[Row], str] | None = None
) -> None:
    """Write a row's label beside its point, above and below in turn so that fewer collide."""
    kept = sorted(present(rows, x, y), key=lambda row: row.mean(x) or 0.0)
    for place, row in enumerate(kept):
        above = place % 2 == 0
        axes.annotate(
            row.label if text is None else text(row),
            (row.mean(x) or 0.0, row.mean(y) or 0.0),
            xytext=(5, 6 if above else -6),
            textcoords="offset points",
            va="bottom" if above else "top",
            fontsize=8.5,
            color=INK,
        )
