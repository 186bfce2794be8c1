"""The plots of the audit page, as small SVG pictures for inlining.

Like those of :mod:`simulations.plots`: plain numbers in, one ``<svg>`` element out, equal numbers
give equal bytes, and no series is told from another by colour alone. However much evidence there
is, a plot has a limited number of points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from server.audit import stats
from simulations.auditdots import MOST_ROWS, PAGE, SOFT, WIDTH, Line, legend_above
from simulations.svg import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, plain_numbers, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVE = 160
_BINS = 40
_STYLES: tuple[tuple[str, Any], ...] = (
    (BLUE, "-"),
    (VERMILLION, (0, (5, 2))),
    (GREEN, (0, (1.5, 1.5))),
    (PURPLE, (0, (7, 2, 1.5, 2))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A lower bound on epsilon.

    Args:
        label: whose, in a few words.
        value: the bound.
        ceiling: the most that it could have been; None if unknown.
        certified: whether it holds whatever the mechanism; else it assumes a Gaussian curve.
        limit: the epsilon that it is held against, where that is not one of the lines.
        delta: at which it is stated; None if unknown.
    """

    label: str
    value: float
    ceiling: float | None
    certified: bool
    limit: float | None = None
    delta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Scores of members and of others."""

    name: str
    inside: NDArray[np.float64] = field(repr=False)
    outside: NDArray[np.float64] = field(repr=False)


def bounds(rows: Sequence[Bound], lines: Sequence[Line], *, axis: str) -> str:
    """Draw lower bounds on epsilon with their ceilings against what is claimed.

    Args:
        rows: the bounds, certified ones first.
        lines: the epsilons of the claim.
        axis: name of the axis, with its delta.
    """
    shown = rows[:MOST_ROWS]
    known = [line.value for line in lines] + [row.value for row in shown]
    known += [row.limit for row in shown if row.limit is not None]
    if not lines:
        known += [row.ceiling for row in shown if row.certified and row.ceiling is not None]
    reach = 1.15 * max([*known, 1e-3])
    placed = list(_placed(shown))
    last = placed[-1][0]

    def draw(axes: Axes) -> None:
        for place, one in placed:
            if isinstance(one, str):
                _words(axes, place, one, x=0.0, side="left", weight="bold")
            else:
                _draw_bound(axes, place, one, reach)
        styles = ((0, (2, 2)), (0, (7, 3)), (0, (1, 3)))
        for line, style in zip(lines, styles, strict=False):
            label = f"{line.label} {line.value:.3g}"
            axes.axvline(
                line.value, color=VERMILLION, linestyle=style, linewidth=1.6, label=label, zorder=2
            )
        axes.set_xlim(0, reach)
        axes.set_ylim(last + 0.5, -0.8)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        _bound_legend(axes, shown)

    return render(draw, size=(WIDTH, 1.3 + 0.4 * last))


def roc(curves: Sequence[Curve], *, alpha: float) -> str:
    """Draw ROC curves on logarithmic axes, each with its pointwise band.

    The band is the Clopper-Pearson interval of the true positive rate at each threshold. The axes
    start at the smallest rate that so many texts can show.
    """
    shown = curves[: len(_STYLES)]
    floor = 1 / max(max(curve.inside.size, curve.outside.size) for curve in shown)

    def draw(axes: Axes) -> None:
        axes.plot(
            [floor, 1],
            [floor, 1],
            color=GREY,
            linestyle=(0, (4, 3)),
            linewidth=1.2,
            label="guessing",
        )
        for curve, (colour, style) in zip(shown, _STYLES, strict=False):
            x, y, low, high = thinned(curve, floor, alpha)
            axes.fill_between(x, low, high, step="post", color=colour, alpha=0.13)
            axes.step(x, y, where="post", color=colour, linestyle=style, label=curve.name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(floor, 1)
        axes.set_ylim(floor, 1)
        plain_numbers(axes)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.legend(loc="lower right")

    return render(draw, size=(WIDTH, 3.6))


def exposure(
    included: Sequence[float],
    held_out: Sequence[float],
    *,
    ceiling: float,
    means: Sequence[Line] = (),
) -> str:
    """Draw exposure in bins of one bit, with what chance would give.

    Args:
        included: bits of canaries that were trained on.
        held_out: bits of canaries that were not.
        ceiling: the most that can be shown, bits.
        means: means to mark, of this adapter and of the control.
    """
    edges = np.arange(0, min(_BINS, math.floor(max(ceiling, 0))) + 2)

    def draw(axes: Axes) -> None:
        width = 0.38
        for offset, (values, colour, hatch, label) in enumerate(
            ((included, BLUE, "", "trained on"), (held_out, "#aab2bd", "////", "kept out"))
        ):
            counts, _ = np.histogram(values, bins=edges)
            axes.bar(
                edges[:-1] + 0.12 + width * (offset + 0.5),
                100 * counts / max(1, len(values)),
                width,
                color=colour,
                label=label,
                hatch=hatch,
                edgecolor="white",
            )
        chance = 100 * (2.0 ** -edges[:-1] - 2.0 ** -edges[1:])
        axes.plot(
            edges[:-1] + 0.5,
            chance,
            color=INK,
            marker="D",
            markersize=3,
            linewidth=1.2,
            label="chance, 2⁻ᵉ",
        )
        for line, style in zip(means, ((0, (7, 3)), (0, (1.5, 2))), strict=False):
            label = f"{line.label} {line.value:.3g}"
            axes.axvline(line.value, color=VERMILLION, linestyle=style, linewidth=1.6, label=label)
        axes.set_xlim(0, float(edges[-1]))
        axes.set_xticks(edges[:: 1 if edges.size <= 12 else 2])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("exposure (bits)")
        axes.set_ylabel("canaries (%)")
        legend_above(axes, axes.get_legend_handles_labels()[0], columns=2)

    return render(draw, size=(WIDTH, 3.4))


def _placed(rows: Sequence[Bound]) -> Iterator[tuple[float, Bound | str]]:
    """Yield bounds and the headings above them, each with its place from the top."""
    place = 0.0
    for certified, heading in ((True, "Certified"), (False, "If the trade-off is Gaussian")):
        some = [row for row in rows if row.certified == certified]
        if some:
            yield place, heading
            for number, row in enumerate(some):
                place += 1.0 if number else 0.8
                yield place, row
            place += 1.15


def _draw_bound(axes: Axes, place: float, row: Bound, reach: float) -> None:
    """Draw one bound: its words above, the ceiling as a pale bar, the bound on it."""
    told = f"{row.value:.2f}"
    if row.ceiling is not None:
        axes.barh([place], [min(row.ceiling, reach)], height=0.3, color=SOFT, zorder=1)
        told += f" of {row.ceiling:.3g}"
    colour = BLUE if row.certified else PURPLE
    axes.plot(
        [0, row.value],
        [place, place],
        color=colour,
        linewidth=3,
        solid_capstyle="butt",
        zorder=3,
    )
    axes.plot(
        [row.value],
        [place],
        "o" if row.certified else "D",
        markersize=6.5,
        markeredgewidth=1.6,
        markeredgecolor=colour,
        markerfacecolor=colour if row.certified else PAGE,
        clip_on=False,
        zorder=4,
    )
    if row.limit is not None:
        ends = [place - 0.22, place + 0.22]
        axes.plot([row.limit] * 2, ends, color=VERMILLION, linewidth=2.6, zorder=3)
    _words(axes, place, row.label, x=0.0, side="left")
    _words(axes, place, told, x=1.0, side="right")


def _words(
    axes: Axes, place: float, text: str, *, x: float, side: str, weight: str = "normal"
) -> None:
    """Write above a row, in front of whatever line passes there."""
    axes.annotate(
        text,
        (x, place - 0.2),
        xycoords=("axes fraction", "data"),
        xytext=(0, 1.5),
        textcoords="offset points",
        ha=side,
        va="bottom",
        fontsize=9,
        fontweight=weight,
        bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 1.0},
        zorder=5,
    )


def _bound_legend(axes: Axes, rows: Sequence[Bound]) -> None:
    """Put what the lines and bars mean above the plot."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    signs: list[Any] = list(axes.get_legend_handles_labels()[0])
    if any(row.ceiling is not None for row in rows):
        signs.append(Patch(facecolor=SOFT, label="up to the ceiling"))
    if any(row.limit is not None for row in rows):
        signs.append(Line2D([], [], color=VERMILLION, linewidth=2.6, label="epsilon of that kind"))
    legend_above(axes, signs, columns=2)


def thinned(
    curve: Curve, floor: float, alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return a ROC curve and its band at some hundred false positive rates."""
    fpr, tpr = stats.roc(curve.inside, curve.outside)
    wanted = np.concatenate(([0.0], np.geomspace(min(floor, 0.5), 1.0, _CURVE)))
    kept = np.unique(np.searchsorted(fpr, wanted * (1 + 1e-12), side="right") - 1)
    x, y = fpr[kept], tpr[kept]
    members = curve.inside.size
    band = np.array(
        [stats.clopper_pearson(round(rate * members), members, alpha=alpha) for rate in y]
    )
    return (
        np.maximum(x, floor),
        np.maximum(y, floor),
        np.maximum(band[:, 0], floor),
        np.maximum(band[:, 1], floor),
    )
