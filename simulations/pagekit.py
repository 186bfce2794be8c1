"""What the pages share: the template environment, pictures with words, and their colours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simulations import reporttext

ASSETS = Path(__file__).parent / "assets"

_COLOURS: Mapping[str, str] = {
    "#0072b2": "blue",
    "#d55e00": "vermillion",
    "#007a5a": "green",
    "#a8588c": "purple",
    "#1b2430": "ink",
    "#5b6675": "grey",
    "#9aa4b2": "edge",
    "#aab2bd": "pale",
    "#dfe4ea": "soft",
    "#e3e7ec": "grid",
    "#8a3b00": "note",
    "#ffffff": "page",
}
"""Colours of plots that a page may replace, for example in the dark: ``--plot-<name>``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One plot with its words.

    Args:
        svg: the plot.
        title: what it shows, in a few words.
        alt: what a reader who cannot see it should know.
        caption: how to read it and what it does not show; may be empty.
    """

    svg: Markup
    title: str
    alt: str
    caption: str = ""


def picture(drawn: str, *, title: str, alt: str, caption: str = "") -> Picture:
    """Return a plot of our own with its words, ready for a page.

    Args:
        drawn: an ``<svg>`` element from :func:`simulations.svg.render`.
        title: what it shows.
        alt: the same for a reader who cannot see it.
        caption: how to read it.
    """
    svg = Markup(themed(drawn))  # noqa: S704 our own SVG; matplotlib escapes its texts
    return Picture(svg=svg, title=title, alt=alt, caption=caption)


def themed(drawn: str) -> str:
    """Let the page choose the colours of a plot; without a choice they stay as they are."""

    def named(match: re.Match[str]) -> str:
        name = _COLOURS.get(match[2])
        return match[0] if name is None else f"{match[1]}: var(--plot-{name}, {match[2]})"

    return re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})\b", named, drawn)


def environment(filters: Mapping[str, Callable[..., object]] | None = None) -> Environment:
    """Return the template environment of a page: escaping on, undefined names are errors."""
    made = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(reporttext.FILTERS)
    made.filters.update(filters or {})
    return made
