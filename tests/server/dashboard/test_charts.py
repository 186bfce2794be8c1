from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.dashboard.charts import HEIGHT, WIDTH, Line, chart, nice_ticks, thinned, whole_ticks
from server.dashboard.words import NOTHING, ago, duration, figure, moment, size

values = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)


@given(values, values)
@example(0.0, 5e-324)
@example(7.0, 7.0)
@example(1.0, 1.0000000000000002)
def test_ticks_are_few_and_hold_every_value(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert ticks[0] <= low + step * 1e-6
    assert ticks[-1] >= high - step * 1e-6


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.4, 8.0, [0, 2, 4, 6, 8]),
        (2.6, 5.1, [2, 3, 4, 5, 6]),
        (0.0, 1.0, [0, 0.5, 1.0]),
        (40.0, 49.0, [40, 45, 50]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(st.integers(min_value=1, max_value=100_000))
def test_rounds_on_the_axis_are_few_and_whole(last: int) -> None:
    ticks = whole_ticks(1.0, last)
    assert ticks[0] == 1
    assert ticks[-1] <= last
    assert len(ticks) <= max(8, last / 1000 + 1)


@given(
    st.lists(st.tuples(st.integers(1, 500), values), min_size=1, max_size=40),
    st.integers(1, 600),
)
def test_a_chart_stays_within_its_box(points: list[tuple[int, float]], rounds: int) -> None:
    line = Line(name="a", points=tuple((float(x), y) for x, y in sorted(points)), style="a")
    drawn = chart("t", "a", [line], rounds=rounds, unit="<b>")
    assert "<b>" not in drawn.svg
    path = re.search(r'class="line a" d="M([^"]+)"', drawn.svg)
    assert path is not None
    for pair in path[1].split("L"):
        x, y = (float(word) for word in pair.split())
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_many_points_are_thinned_and_the_last_is_kept() -> None:
    points = [(float(n), float(n * n)) for n in range(10_001)]
    found = thinned(points)
    assert len(found) <= 401
    assert found[-1] == points[-1]
    assert list(found) == sorted(found)
    assert thinned(points[:3]) == tuple(points[:3])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NOTHING),
        (True, NOTHING),
        ("7", NOTHING),
        (math.nan, NOTHING),
        (math.inf, "infinite"),
        (10**400, NOTHING),
        (8.0, "8"),
        (0.0005, "5·10⁻⁴"),
        (7.9, "7.900"),
        (1_234_567.5, "1.235·10⁶"),
        (12_000, "12\u202f000"),
    ],
)
def test_figures(value: object, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (45, "45\xa0s ago"), (61, "1\xa0min ago"), (7300, "2\xa0h ago")],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert ago(1000.0, 1000.0 + seconds) == text


def test_times_and_sizes() -> None:
    assert ago(None, 5.0) == "never"
    assert ago(1000.0, 10.0) == "in 16\xa0min 30\xa0s"
    assert duration(90_061) == "1\xa0d 1\xa0h"
    assert duration(59.94) == "59.9\xa0s"
    assert duration(-1) == NOTHING
    assert size(77_059) == "77.1\xa0kB"
    assert size(2.5e9) == "2.5\xa0GB"
    assert size(7) == "7\xa0B"
    assert moment(0) == "1970-01-01 00:00 UTC"
    assert moment(-1) == NOTHING
    assert moment(1e300) == NOTHING
