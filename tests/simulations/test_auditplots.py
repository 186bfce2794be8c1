"""The plots of audits: repeatable, self-contained, limited in points, right where they can be."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest

from simulations import auditdots, auditplots, pagekit
from simulations.auditdots import Dot, Line, Series
from simulations.auditfigures import label
from simulations.auditplots import Bound, Curve

BOUNDS = [
    Bound(label="one", value=1.0, ceiling=2.5, certified=True, delta=1e-5),
    Bound(label="two", value=0.5, ceiling=90.0, certified=False, limit=3.0),
]
SERIES = [
    Series(name="here", dots=(Dot(value=0.5, low=0.4, high=0.6, cloud=(0.4, 0.6)), None)),
    Series(name="planned", dots=(Dot(value=0.5, low=0.1, high=0.9), Dot(value=1.0)), role="null"),
    Series(name="of a later version", dots=(None, Dot(value=0.2)), role="fifth"),
]


def curve(name: str, size: int, seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    return Curve(name=name, inside=rng.normal(1, 1, size), outside=rng.normal(0, 1, size))


DRAWINGS: dict[str, Callable[[], str]] = {
    "bounds": lambda: auditplots.bounds(BOUNDS, [Line(label="claimed", value=4.0)], axis="epsilon"),
    "bounds of no claim": lambda: auditplots.bounds(BOUNDS, [], axis="epsilon"),
    "roc": lambda: auditplots.roc([curve("a", 30), curve("b", 300, 1)], alpha=0.05),
    "exposure": lambda: auditplots.exposure(
        [5.0, 9.0], [0.3, 1.2], ceiling=9.003, means=[Line(label="mean", value=7.0)]
    ),
    "dots": lambda: auditdots.dots(
        ["a", "b"], SERIES, axis="share (%)", limits=(0, 1), percent=True
    ),
}


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_equal_numbers_give_equal_bytes(name: str) -> None:
    assert DRAWINGS[name]() == DRAWINGS[name]()


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_a_plot_is_one_scalable_element_without_outside_references(name: str) -> None:
    drawn = pagekit.themed(DRAWINGS[name]())
    root = ET.fromstring(drawn)  # noqa: S314 our own picture
    assert root.tag.endswith("svg")
    assert not {"width", "height"} & set(root.attrib)
    assert set(re.findall(r"https?://[^\"'\s<]+", drawn)) <= {"http://www.w3.org/2000/svg"}
    used = {link[1:] for link in re.findall(r'href="([^"]+)"', drawn)}
    used |= set(re.findall(r"url\(#([^)]+)\)", drawn))
    assert used <= set(re.findall(r'\bid="([^"]+)"', drawn))


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_a_page_may_choose_every_colour(name: str) -> None:
    """Else a line would vanish in the dark."""
    themed = pagekit.themed(DRAWINGS[name]())
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", themed))
    assert fixed <= {"#000000"}  # of clip paths and hatches' own default, which are not seen
    assert "var(--plot-ink, #1b2430)" in themed


def _points(drawn: str) -> int:
    return max(len(re.findall(r"[ML]", path)) for path in re.findall(r'<path d="([^"]+)"', drawn))


def test_a_curve_of_many_scores_has_few_points() -> None:
    small = auditplots.roc([curve("a", 20_000)], alpha=0.05)
    assert len(small) < 60_000
    assert _points(small) < 1000


def test_a_thinned_curve_lies_on_the_whole_one() -> None:
    """Oracle: the share of members above the largest threshold that accuses few enough."""
    scores = curve("a", 3000)
    x, y, low, high = auditplots.thinned(scores, 1 / 3000, 0.05)
    for fpr, tpr in list(zip(x, y, strict=True))[5::25]:
        allowed = int(np.floor(fpr * 3000 + 1e-9))
        threshold = np.sort(scores.outside)[::-1][allowed] if allowed < 3000 else -np.inf
        assert tpr == pytest.approx((scores.inside > threshold).mean(), abs=2 / 3000)
    assert (low <= y).all()
    assert (y <= high).all()
    assert (np.diff(x) >= 0).all()
    assert x[-1] == y[-1] == 1.0


def test_many_rows_are_cut_and_not_drawn() -> None:
    many = [Bound(label=f"row {i}", value=1.0, ceiling=None, certified=True) for i in range(500)]
    drawn = auditplots.bounds(many, [], axis="epsilon")
    assert drawn.count("row ") <= 2 * auditdots.MOST_ROWS
    labels = [f"row {i}" for i in range(500)]
    dots = tuple(Dot(value=0.5) for _ in labels)
    assert auditdots.dots(labels, [Series(name="s", dots=dots)], axis="x").count("row ") <= 80


def test_a_ceiling_beyond_the_edge_does_not_stretch_the_axis() -> None:
    near = auditplots.bounds(BOUNDS, [Line(label="claimed", value=4.0)], axis="epsilon")
    assert ">5<" not in near
    assert ">4<" in near
    assert "0.50 of 90" in near


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rare-token", "rare-token"),
        ("two_words", "two words"),
        ("$\\frac$", "\\$\\frac\\$"),
        ("né\n\u4e2d", "n???"),
        ("", "?"),
        (None, "None"),
        ("x" * 80, "x" * 23 + "..."),
    ],
)
def test_names_from_a_file_are_made_plain(given: object, shown: str) -> None:
    assert label(given) == shown
    assert "<svg" in auditdots.dots([label(given)], [SERIES[0]], axis="x")
