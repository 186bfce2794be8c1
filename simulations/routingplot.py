"""The picture of how a mixture's router divides clients' texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulations.svg import BLUE, GREEN, GREY, PURPLE, VERMILLION, legend, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FILLS = (
    (BLUE, ""),
    (VERMILLION, "//"),
    (GREEN, ".."),
    (PURPLE, "xx"),
    (GREY, "--"),
    (BLUE, "\\\\"),
    (VERMILLION, "++"),
    (GREEN, "oo"),
)


def draw_shares(shares: NDArray[np.float64]) -> str:
    """Draw one column for each client, cut by adapter.

    Args:
        shares: ``(clients, adapters)``; rows sum to 1.
    """

    def draw(axes: Axes) -> None:
        clients = np.arange(1, len(shares) + 1)
        below = np.zeros(len(shares))
        for k, column in enumerate(shares.T):
            colour, hatch = _FILLS[k % len(_FILLS)]
            axes.bar(
                clients,
                100 * column,
                bottom=100 * below,
                width=1.0,
                color=colour,
                alpha=0.75,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.4,
                label=f"adapter {k}",
            )
            below = below + column
        axes.set_ylim(0, 100)
        axes.set_xlim(0.5, len(shares) + 0.5)
        axes.set_xlabel("clients, by their share of adapter 0")
        axes.set_ylabel("share of the router's weight (%)")
        legend(axes)

    return render(draw)
