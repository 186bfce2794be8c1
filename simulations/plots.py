"""The plots of the run report, as small SVG pictures for inlining.

Each function takes plain numbers and returns one ``<svg>`` element without width or height, so
that it scales with the page. Equal numbers give equal bytes, and text stays text. Colours are
those of Okabe and Ito, darkened where they would be too pale, and no series is told from another
by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulations.svg import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILLION,
    legend,
    plain_numbers,
    render,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[float | None]


def measured_by_round(
    rounds: Sequence[int], values: Points, *, before: float | None, name: str
) -> str:
    """Draw a held-out measurement by round, with the base model's value as a line.

    Args:
        rounds: round numbers, from 1.
        values: one value a round; None where nothing was measured.
        before: the value of the base model; drawn as round 0.
        name: label of the vertical axis, with its unit.
    """

    def draw(axes: Axes) -> None:
        x, y = _present(rounds, values)
        if before is not None:
            x, y = np.append(0, x), np.append(before, y)
            axes.axhline(before, color=GREY, linestyle=(0, (4, 3)), linewidth=1.4)
            axes.annotate(
                "base model",
                (1, before),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 4),
                textcoords="offset points",
                ha="right",
                fontsize=9.5,
                color=GREY,
            )
            axes.margins(y=0.12)
        axes.plot(x, y, color=BLUE, marker="o" if x.size <= 40 else None)
        axes.set_xlabel("round")
        axes.set_ylabel(name)
        whole_numbers(axes)

    return render(draw)


def measured_by_time(seconds: Sequence[float], values: Points, *, name: str) -> str:
    """Draw a held-out measurement by simulated time.

    Args:
        seconds: simulated time at the end of each round, ascending.
        values: one value a round; None where nothing was measured.
        name: label of the vertical axis, with its unit.
    """
    scale, unit = time_scale(max(seconds, default=0.0))

    def draw(axes: Axes) -> None:
        pairs = [
            (at / scale, value)
            for at, value in zip(seconds, values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        axes.plot(
            [x for x, _ in pairs],
            [y for _, y in pairs],
            color=BLUE,
            marker="o" if len(pairs) <= 40 else None,
        )
        axes.set_xlim(left=0)
        axes.set_xlabel(f"simulated time ({unit})")
        axes.set_ylabel(name)

    return render(draw)


def time_scale(longest: float) -> tuple[float, str]:
    """Return the divisor and the unit in which a number of seconds reads well."""
    for scale, unit in ((172800.0, "days"), (7200.0, "hours"), (120.0, "minutes")):
        if longest >= scale:
            return {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[unit], unit
    return 1.0, "seconds"


def epsilon_by_round(
    rounds: Sequence[int],
    epsilon: Points,
    epsilon_rdp: Points,
    cap: float | None,
    *,
    accountant: str = "pld",
) -> str:
    """Draw the epsilon spent by round, by both accountants, against the cap.

    ``accountant`` names the reported one; where it is ``"rdp"`` there is no other to compare with.
    The vertical axis is logarithmic where the values span more than a factor of thirty.
    """

    def draw(axes: Axes) -> None:
        spent = []
        curves: list[tuple[Points, str, Any, str]] = [
            (epsilon, BLUE, "-", f"{accountant.upper()}, reported")
        ]
        if accountant != "rdp":
            curves.append((epsilon_rdp, GREEN, (0, (5, 2)), "RDP, cross-check"))
        for values, colour, style, label in curves:
            x, y = _present(rounds, values)
            if x.size:
                axes.plot(
                    x,
                    y,
                    color=colour,
                    linestyle=style,
                    label=label,
                    marker="o" if x.size == 1 else None,
                )
                spent.extend(y.tolist())
        if cap is not None:
            axes.axhline(cap, color=VERMILLION, linestyle=(0, (2, 2)), label=f"cap {cap:.3g}")
            spent.append(cap)
        smallest = min((value for value in spent if value > 0), default=1.0)
        if spent and max(spent) > 30 * smallest:
            axes.set_yscale("log")
            plain_numbers(axes)
        elif spent:
            axes.set_ylim(0, 1.12 * max(spent))
        axes.set_xlabel("round")
        axes.set_ylabel("epsilon")
        whole_numbers(axes)
        legend(axes)

    return render(draw)


def clients_before_after(
    before: Sequence[float],
    after: Sequence[float],
    *,
    names: tuple[str, str] = ("base model", "with the adapter"),
) -> str:
    """Draw the share of clients at or below each held-out loss, before and after.

    Args:
        before: held-out loss of each client with the base model, nats per token.
        after: the same with the adapter.
        names: what the two curves are called.
    """

    def draw(axes: Axes) -> None:
        for values, colour, style, label in (
            (before, GREY, (0, (5, 2)), names[0]),
            (after, BLUE, "-", names[1]),
        ):
            x = np.sort(np.asarray(values, dtype=np.float64))
            y = np.arange(1, x.size + 1) / x.size
            axes.step(x, 100 * y, where="post", color=colour, linestyle=style, label=label)
        axes.axhspan(90, 100, color=VERMILLION, alpha=0.12)
        axes.annotate(
            "worst decile",
            (0, 95),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=9.5,
            color="#8a3b00",
        )
        axes.set_ylim(0, 100)
        axes.set_xlabel("held-out loss of a client (nats per token)")
        axes.set_ylabel("clients at or below (%)")
        legend(axes)

    return render(draw)


def bytes_by_round(rounds: Sequence[int], up: Points, down: Points) -> str:
    """Draw the bytes that all clients together sent and received, added up over the rounds."""

    def draw(axes: Axes) -> None:
        totals = [np.cumsum([value or 0.0 for value in values]) for values in (up, down)]
        scale, unit = byte_scale(max(float(total[-1]) for total in totals))
        for total, colour, style, label in (
            (totals[0], PURPLE, "-", "up, from clients"),
            (totals[1], GREEN, (0, (3, 3)), "down, to clients"),
        ):
            axes.plot(
                rounds,
                total / scale,
                color=colour,
                linestyle=style,
                label=label,
                marker="o" if len(rounds) == 1 else None,
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("round")
        axes.set_ylabel(f"{unit}, all clients, summed")
        whole_numbers(axes)
        legend(axes)

    return render(draw)


def byte_scale(largest: float) -> tuple[float, str]:
    """Return the divisor and the decimal unit in which a number of bytes reads well."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= scale:
            return scale, unit
    return 1.0, "bytes"


def _present(
    rounds: Sequence[int], values: Points
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rounds that have a finite value, and these values."""
    pairs = [
        (number, value)
        for number, value in zip(rounds, values, strict=True)
        if value is not None and math.isfinite(value)
    ]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
