"""The plots: repeatable, self-contained, honest about what is missing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from simulations import plots, svg

ROUNDS = [1, 2, 3, 4]
DRAWINGS: dict[str, Callable[[], str]] = {
    "measured": lambda: plots.measured_by_round(
        ROUNDS, [3.0, None, 2.5, 2.4], before=4.0, name="loss"
    ),
    "epsilon": lambda: plots.epsilon_by_round(ROUNDS, [1, 2, 3, 4], [1.5, 2.5, 3.5, 4.5], 5.0),
    "clients": lambda: plots.clients_before_after([4.0, 5.0, 4.5], [3.0, 3.5, 3.1]),
    "bytes": lambda: plots.bytes_by_round(ROUNDS, [10, 10, 0, 10], [20, 20, None, 20]),
}


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_equal_numbers_give_equal_bytes(name: str) -> None:
    assert DRAWINGS[name]() == DRAWINGS[name]()


@pytest.mark.parametrize("name", sorted(DRAWINGS))
def test_a_plot_is_one_small_scalable_element_without_outside_references(name: str) -> None:
    drawn = DRAWINGS[name]()
    root = ET.fromstring(drawn)  # noqa: S314 our own picture
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)
    assert len(drawn) < 200_000
    addresses = set(re.findall(r"https?://[^\"'\s<]+", drawn))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    used = {link[1:] for link in re.findall(r'href="([^"]+)"', drawn)}
    used |= set(re.findall(r"url\(#([^)]+)\)", drawn))
    assert used <= set(re.findall(r'\bid="([^"]+)"', drawn))


def test_identifiers_of_different_plots_do_not_clash() -> None:
    identifiers = [set(re.findall(r'\bid="([^"]+)"', draw())) for draw in DRAWINGS.values()]
    assert sum(map(len, identifiers)) == len(set[str]().union(*identifiers))


def test_text_stays_text() -> None:
    drawn = plots.measured_by_round([1], [3.0], before=None, name="loss (nats per token)")
    assert "loss (nats per token)" in drawn


def _drawn_points(drawn: str, colour: str) -> int:
    """Count the vertices of the longest line of a colour."""
    lines = re.findall(rf'<path d="([^"]+)"[^>]*stroke: {colour}', drawn)
    return max(len(re.findall(r"[ML]", line)) for line in lines)


def test_rounds_without_a_measurement_are_left_out_and_not_drawn_as_zero() -> None:
    full = plots.measured_by_round(ROUNDS, [3.0, 2.8, 2.5, 2.4], before=None, name="loss")
    gap = plots.measured_by_round(ROUNDS, [3.0, None, float("nan"), 2.4], before=None, name="loss")
    assert _drawn_points(full, svg.BLUE) == 4
    assert _drawn_points(gap, svg.BLUE) == 2


def test_epsilon_turns_logarithmic_only_when_it_spans_orders() -> None:
    near = plots.epsilon_by_round(ROUNDS, [1, 2, 3, 4], [None] * 4, 8.0)
    far = plots.epsilon_by_round(ROUNDS, [0.01, 0.1, 1, 4], [None] * 4, 8.0)
    assert ">0.01<" not in near
    assert ">0.1<" in far
    assert ">0<" in near
    assert ">0<" not in far


def test_one_round_is_visible() -> None:
    assert "<use" in plots.epsilon_by_round([1], [1.0], [None], None)
    assert "<use" in plots.bytes_by_round([1], [5], [6])


@pytest.mark.parametrize(
    ("largest", "unit"), [(0, "bytes"), (999, "bytes"), (1e3, "kB"), (5e6, "MB"), (2e9, "GB")]
)
def test_bytes_come_in_decimal_units(largest: float, unit: str) -> None:
    assert plots.byte_scale(largest)[1] == unit
