"""The plot of the benchmark ``engine``: client-rounds a second by clients a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulations.benchmarks.protocol import BenchResult
from simulations.svg import BLUE, GREEN, GREY, PURPLE, VERMILLION, plain_numbers, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CENTRAL = "centralised loop"
# What was timed has a colour and a mark; the first base has full marks and lines, the others not.
_KINDS = {
    "workers": (GREEN, "s"),
    "threads": (VERMILLION, "D"),
    CENTRAL: (GREY, "x"),
    "Ray engine": (PURPLE, "^"),
    "rounds": (BLUE, "o"),
}

Series = dict[str, list[tuple[float, float]]]


def series_of(result: BenchResult) -> Series:
    """Return clients a round and client-rounds a second by what was timed, in order of the rows."""
    found: Series = {}
    for row in result.rows:
        if row.get("clients_per_s") is None:
            continue
        case, clients = str(row["case"]), float(str(row["clients"]))
        found.setdefault(case, []).append((clients, float(str(row["clients_per_s"]))))
        if row.get("central_s") is not None:
            model = case.partition(",")[0]
            point = (clients, clients / float(str(row["central_s"])))
            found.setdefault(f"{model}, {CENTRAL}", []).append(point)
    return found


def draw_rates(result: BenchResult) -> str:
    """Return one ``<svg>`` element."""
    lines = series_of(result)

    def draw(axes: Axes) -> None:
        bases = [name.partition(",")[0] for name in lines]
        for base, (name, points) in zip(bases, lines.items(), strict=True):
            colour, marker = next(_KINDS[kind] for kind in _KINDS if kind in name)
            first = base == bases[0]
            axes.plot(
                [clients for clients, _ in points],
                [rate for _, rate in points],
                color=colour,
                marker=marker,
                markerfacecolor=colour if first else "white",
                linestyle="-" if first else (0, (4, 2)),
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_numbers(axes)
        axes.set_xlabel("clients a round")
        axes.set_ylabel("client-rounds a second")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.1)

    return render(draw, size=(6.4, 4.4))
