"""The picture of the benchmark ``stragglers``: held-out loss by simulated time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulations.benchmarks.protocol import BenchResult
from simulations.svg import BLUE, GREEN, VERMILLION, legend, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, VERMILLION, GREEN)
_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)))


def draw_races(result: BenchResult) -> str:
    """Return one ``<svg>`` element: a line a run, a colour and a dash an arm."""
    rows = [row for row in result.rows if row.get("curve")]
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))

    def draw(axes: Axes) -> None:
        named = set()
        for row in rows:
            arm = str(row["arm"])
            points = [pair.split(":") for pair in str(row["curve"]).split()]
            index = arms.index(arm) % len(_COLOURS)
            axes.plot(
                [float(hours) for hours, _ in points],
                [float(loss) for _, loss in points],
                color=_COLOURS[index],
                linestyle=_DASHES[index],
                linewidth=1.4,
                label=None if arm in named else arm,
            )
            named.add(arm)
        axes.set_xlim(left=0)
        axes.set_xlabel("simulated hours")
        axes.set_ylabel("held-out loss (nats per token)")
        if rows:
            legend(axes)

    return render(draw, size=(7.0, 3.6))
