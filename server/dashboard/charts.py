"""Small line charts as SVG, without a drawing library; colours are classes of the style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from server.dashboard.words import figure

WIDTH, HEIGHT = 380.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 26.0, 34.0
_TICKS = 4
_MARKED = 12
_MOST_POINTS = 400
_SMALLEST, _FLAT = 1e-200, 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve.

    Attributes:
        name: shown above the chart.
        points: (round, value), ascending; where nothing was measured there is no point.
        style: ``"a"`` solid, ``"b"`` dashed, ``"c"`` dotted: each also has a colour of its own.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart with its words.

    Attributes:
        title: what it shows.
        alt: what a reader who cannot see it should know.
        svg: the picture.
        series: the numbers of the picture, by name.
        styles: how each of them is drawn.
    """

    title: str
    alt: str
    svg: Markup
    series: dict[str, list[list[float]]]
    styles: dict[str, str]


def chart(title: str, alt: str, lines: Sequence[Line], *, rounds: int, unit: str) -> Chart:
    """Draw curves over the rounds of a run, from zero or from just below the smallest value.

    Args:
        title: what it shows.
        alt: the same for a reader who cannot see it.
        lines: at least one point among them.
        rounds: the last round on the axis.
        unit: of the values, above the axis.
    """
    values = [value for line in lines for _, value in line.points]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    last = max(rounds, 1, *(math.ceil(x) for line in lines for x, _ in line.points))
    first = min(1.0, *(x for line in lines for x, _ in line.points))

    def x_of(server_round: float) -> float:
        share = (server_round - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    box = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}"'
    parts = [f'<svg class="chart" {box} aria-hidden="true" focusable="false">']
    for tick in ticks:
        y = y_of(tick)
        parts.append(
            f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{WIDTH - _RIGHT:g}"/>'
            f'<text class="y" x="{_LEFT - 6:g}" y="{y + 4:.1f}">{_label(tick, ticks)}</text>'
        )
    parts += [
        f'<text class="x" x="{x_of(tick):.1f}" y="{HEIGHT - _BOTTOM + 17:g}">{tick}</text>'
        for tick in whole_ticks(first, last)
    ]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="x axis" x="{middle:g}" y="{HEIGHT - 2:g}">round</text>')
    parts.append(f'<text class="unit" x="0" y="12">{escape(unit)}</text>')
    parts += [_curve(line, x_of, y_of) for line in lines if line.points]
    parts.append("</svg>")
    series = {line.name: [list(point) for point in line.points] for line in lines}
    svg = Markup("".join(parts))  # noqa: S704 numbers and our own words; the unit is escaped
    styles = {line.name: line.style for line in lines}
    return Chart(title=title, alt=alt, svg=svg, series=series, styles=styles)


def nice_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from at most ``low`` to at least ``high``, a few of them.

    The axis starts at zero unless all values are far from it.
    """
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    span, largest = high - low, max(abs(low), abs(high))
    if largest < _SMALLEST:
        span = 1.0
    elif span < _FLAT * largest:
        span = largest
    step = 10.0 ** math.floor(math.log10(span / _TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= _TICKS)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(start, max(end, start + 1) + 1)]


def whole_ticks(first: float, last: int) -> list[int]:
    """Return whole rounds for the axis, at most seven, the first among them."""
    step = max(1, math.ceil((last - first) / 6))
    for nice in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000):
        if nice >= step:
            step = nice
            break
    start = math.ceil(first)
    found = [start, *range(step, last + 1, step)]
    return sorted({tick for tick in found if tick == start or tick - start >= step / 2})


def thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return at most some hundred of many points, the last among them."""
    stride = math.ceil(len(points) / _MOST_POINTS) or 1
    return tuple(points[len(points) - 1 :: -stride][::-1])


def _curve(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:
    """Draw one curve; a dot for each value while there are few."""
    points = thinned(line.points)
    path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
    drawn = f'<path class="line {line.style}" d="M{path}"/>'
    if len(points) <= _MARKED:
        drawn += "".join(
            f'<circle class="dot {line.style}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.8"/>'
            for x, y in points
        )
    return drawn


def _label(tick: float, ticks: Sequence[float]) -> str:
    """Write a tick with as many decimals as the step needs."""
    step = ticks[1] - ticks[0]
    if abs(tick) >= 1e6 or 0 < step < 1e-3:
        return figure(tick, 2)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick:.{decimals}f}"
