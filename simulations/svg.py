"""From a drawing function to one ``<svg>`` element that fits into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from shared.canonical import sha256_hex

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILLION, GREEN, PURPLE, INK, GREY = (
    "#0072b2",
    "#d55e00",
    "#007a5a",
    "#a8588c",
    "#1b2430",
    "#5b6675",
)

_SIZE = (5.2, 3.1)
_DECORATION = ' aria-hidden="true" focusable="false"'
_STYLE: Mapping[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "font.size": 10.5,
    "font.family": ["DejaVu Sans"],
    "axes.edgecolor": "#9aa4b2",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.2,
    "lines.linewidth": 2,
    "lines.markersize": 4,
    "patch.linewidth": 0,
}


def whole_numbers(axes: Axes) -> None:
    """Put ticks on whole rounds only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def plain_numbers(axes: Axes) -> None:
    """Write logarithmic ticks as 0.01 and not as powers, so that they stay plain text."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def legend(axes: Axes) -> None:
    """Put the legend above the plot, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, columnspacing=1.1)


def render(draw: Callable[[Axes], None], *, size: tuple[float, float] = _SIZE) -> str:
    """Draw one picture and return its ``<svg>`` element, with identifiers of its own."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": "fedslm"}):
        figure = Figure(figsize=size, layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        # ``savefig`` would draw it twice: once to lay it out, though drawing does so itself.
        canvas.print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    element = text[text.index("<svg") :].strip()
    return _inline(element, prefix=f"p{sha256_hex(element)[:8]}-")


def as_file(element: str, *, title: str) -> str:
    """Return a picture made for a page as a file of its own: with a title, on white.

    Args:
        element: what :func:`render` returned.
        title: what is read out for it.
    """
    opening, rest = element.replace(_DECORATION, "", 1).split(">", 1)
    return f'{opening} role="img" style="background:#fff"><title>{escape(title)}</title>{rest}\n'


def _inline(element: str, *, prefix: str) -> str:
    """Make an SVG element fit for a page: no size, no metadata, identifiers that do not clash."""
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    opening, rest = element.split(">", 1)
    opening = re.sub(r'\s(?:width|height|version|xmlns:xlink)="[^"]*"', "", opening)
    opening += _DECORATION
    rest = rest.replace("xlink:href=", "href=")
    rest = re.sub(r'\bid="', f'id="{prefix}', rest)
    rest = re.sub(r'\bhref="#', f'href="#{prefix}', rest)
    rest = rest.replace("url(#", f"url(#{prefix}")
    return f"{opening}>{rest}"
