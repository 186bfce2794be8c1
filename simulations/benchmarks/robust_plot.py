"""The plot of the benchmark ``robust``: what each defence leaves of loss and backdoor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from simulations.benchmarks.protocol import BenchResult, Scalar
from simulations.benchmarks.quality_rows import number
from simulations.svg import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ((GREY, "o"), (INK, "P"), (BLUE, "s"), (GREEN, "D"), (VERMILLION, "^"), (PURPLE, "v"))
_MORE = ((BLUE, "X"),)

Row = Mapping[str, Scalar]


def draw_defences(result: BenchResult) -> str:
    """Return one ``<svg>`` element: losses above, backdoor successes below, one place an attack.

    A point is the median over seeds, its bar the range; the places are attacks with their share of
    attackers, the colours are defences. Losses of three times the base's and more stand at the top.
    """
    rows = [dict(row) for row in result.rows]
    places = list(dict.fromkeys(_place(row) for row in rows))
    defences = list(dict.fromkeys(str(row["defence"]) for row in rows))

    def draw(axes: Axes) -> None:
        figure = axes.get_figure(root=True)
        axes.remove()
        if figure is None or not rows:
            return
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        top = 3.0 * max(number(row["loss_before"]) for row in rows)
        for index, defence in enumerate(defences):
            colour, marker = (*_STYLES, *_MORE)[index % (len(_STYLES) + len(_MORE))]
            shift = 0.7 * ((index + 0.5) / len(defences) - 0.5)
            mine = [row for row in rows if row["defence"] == defence]
            for panel, key in ((above, "loss"), (below, "backdoor")):
                shown = [row for row in mine if row[key] is not None]
                middle = [_within(row[key], top) for row in shown]
                panel.errorbar(
                    [places.index(_place(row)) + shift for row in shown],
                    middle,
                    yerr=[
                        [
                            m - _within(r[f"{key}_min"], top)
                            for r, m in zip(shown, middle, strict=True)
                        ],
                        [
                            _within(r[f"{key}_max"], top) - m
                            for r, m in zip(shown, middle, strict=True)
                        ],
                    ],
                    fmt=marker,
                    color=colour,
                    markersize=6,
                    elinewidth=1.2,
                    label=defence,
                )
        above.axhline(number(rows[0]["loss_before"]), color=GREY, linewidth=1.0, linestyle=":")
        above.set_ylabel("held-out loss (nats per token)")
        below.set_ylabel("backdoor success")
        below.set_ylim(-0.05, 1.05)
        below.set_xticks(range(len(places)), labels=places)
        handles, labels = above.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4)

    return render(draw, size=(11.0, 6.5))


def _place(row: Row) -> str:
    """Return the attack of a row with its share."""
    if row["attack"] == "none":
        return "no attack"
    return f"{row['attack']}\n{number(row['attackers']):.0%}"


def _within(value: Scalar, top: float) -> float:
    """Return a value, or the top where it is none or beyond."""
    found = math.nan if value is None else number(value)
    if not found <= top:
        return top
    return found
