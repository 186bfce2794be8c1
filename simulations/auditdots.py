"""Plots of measured values with their intervals, one row each, for the audit page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.svg import BLUE, GREEN, GREY, VERMILLION, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 40
"""Most rows of a plot; further ones are left out."""

WIDTH = 4.8
"""Width of a plot in inches: its text stays readable on a phone."""

SOFT, PAGE = "#dfe4ea", "#ffffff"
_CLOUD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A vertical line that marks a value."""

    label: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A measured value with its interval, and the single values behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    cloud: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values of one sort, one for each row of a plot; None where there is none."""

    name: str
    dots: tuple[Dot | None, ...]
    role: str = "first"


ROLES = {
    "first": (BLUE, "o", True),
    "second": (VERMILLION, "D", False),
    "third": (GREEN, "s", False),
    "null": (GREY, "|", False),
}
"""Colour, marker and whether the marker is filled, by role of a series."""


def dots(
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    axis: str,
    limits: tuple[float, float] | None = None,
    lines: Sequence[Line] = (),
    percent: bool = False,
) -> str:
    """Draw values with their intervals, one row per label.

    Args:
        labels: names of the rows.
        series: values for each row.
        axis: name of the axis, with its unit.
        limits: ends of the axis; by default what is needed.
        lines: values to mark.
        percent: show shares as percentages.
    """
    scale = 100.0 if percent else 1.0
    shown = list(labels)[:MOST_ROWS]
    steps = np.linspace(-0.25, 0.25, len(series)) if len(series) > 1 else [0.0]

    def draw(axes: Axes) -> None:
        for one, step in zip(series, steps, strict=True):
            _draw_series(axes, one, float(step), scale, len(shown))
        for line in lines:
            axes.axvline(
                scale * line.value,
                color=GREY,
                linestyle=(0, (4, 3)),
                linewidth=1.3,
                label=line.label,
            )
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        if limits is not None:
            low, high = (scale * end for end in limits)
            room = 0.02 * (high - low)
            axes.set_xlim(low - room, high + room)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        signs = axes.get_legend_handles_labels()[0]
        legend_above(axes, signs, columns=3 if len(signs) == 3 else 2)

    height = 0.19 + 0.07 * len(series)
    return render(draw, size=(WIDTH, 1.15 + height * len(shown)))


def legend_above(axes: Axes, handles: Sequence[Any], *, columns: int) -> None:
    """Put a legend above the plot, as wide as the whole picture, where it covers nothing."""
    from matplotlib.figure import Figure

    whole = axes.figure
    if handles and isinstance(whole, Figure):
        whole.legend(
            handles=list(handles),
            loc="outside upper left",
            ncols=columns,
            columnspacing=1.1,
            handlelength=1.6,
            borderpad=0.1,
        )


def _draw_series(axes: Axes, one: Series, step: float, scale: float, rows: int) -> None:
    """Draw the values of one series."""
    colour, marker, filled = ROLES.get(one.role, ROLES["first"])
    label: str | None = one.name
    for place, dot in enumerate(one.dots[:rows]):
        if dot is None:
            continue
        y = place + step
        if dot.cloud:
            cloud = scale * np.asarray(dot.cloud[:_CLOUD])
            axes.plot(cloud, np.full(cloud.size, y), "o", color="#aab2bd", markersize=3.5)
        if dot.low is not None and dot.high is not None:
            ends = [scale * dot.low, scale * dot.high]
            wide = one.role == "null"
            axes.plot(
                ends,
                [y, y],
                color=SOFT if wide else colour,
                linewidth=7.0 if wide else 1.6,
                solid_capstyle="butt",
            )
        axes.plot(
            [scale * dot.value],
            [y],
            linestyle="none",
            marker=marker,
            markersize=11 if marker == "|" else 6,
            color=colour,
            markerfacecolor=colour if filled else PAGE,
            markeredgewidth=1.6,
            label=label,
            clip_on=False,
            zorder=4,
        )
        label = None
