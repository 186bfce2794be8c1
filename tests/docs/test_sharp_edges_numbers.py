"""Every number of docs/sharp-edges.md is computed here, from dp-accounting or by hand.

The oracle is dp-accounting called directly, not our accountant.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.group import group_epsilon

PAGE = Path(__file__).parents[2] / "docs" / "sharp-edges.md"
ADD_OR_REMOVE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = dp_accounting.NeighboringRelation.REPLACE_ONE


def said(pattern: str) -> list[str]:
    """Return the numbers that a sentence of the page gives, whatever its line ends."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    match = re.search(pattern, text)
    assert match is not None, pattern
    return list(match.groups())


def epsilon(
    relation: dp_accounting.NeighboringRelation,
    *,
    probability: float,
    steps: int,
    delta: float,
    interval: float = 1e-4,
) -> float:
    accountant = PLDAccountant(relation, value_discretization_interval=interval)
    one = PoissonSampledDpEvent(probability, GaussianDpEvent(1.0))
    accountant.compose(SelfComposedDpEvent(one, steps))
    return float(accountant.get_epsilon(delta))


def test_empty_batches() -> None:
    size, percent = said(r"expected size of (\d+) that happens in ([\d.]+) % of the steps")
    assert f"{100 * math.exp(-float(size)):.1f}" == percent


def test_poisson_against_counting_an_epoch_as_one_release() -> None:
    poisson, epoch = said(r"delta 1e-6, Poisson gives epsilon ([\d.]+)\b.*? gives ([\d.]+)\.")
    sampled = epsilon(ADD_OR_REMOVE, probability=0.001, steps=1000, delta=1e-6)
    assert f"{sampled:.2f}" == poisson
    # Each example is in one batch of a shuffled epoch: one release without amplification.
    accountant = PLDAccountant(ADD_OR_REMOVE)
    accountant.compose(GaussianDpEvent(1.0))
    assert f"{accountant.get_epsilon(1e-6):.1f}" == epoch


@pytest.mark.slow
def test_more_records_of_one_person() -> None:
    one, two, four, eight = said(
        r"epsilon is ([\d.]+) for one record, ([\d.]+) for two, ([\d.]+) for four and (\d+) for eig"
    )
    sampled = epsilon(ADD_OR_REMOVE, probability=0.01, steps=1000, delta=1e-5)
    assert f"{sampled:.1f}" == one
    # No second implementation of groups is at hand; the page repeats what the report would say.
    event = GaussianEvent(noise_multiplier=1.0, sampling_probability=0.01, count=1000)
    for size, number in ((2, two), (4, four), (8, eight)):
        found = group_epsilon(
            event, size=size, delta=1e-5, relation=NeighboringRelation.ADD_OR_REMOVE_ONE
        )
        decimals = len(number.partition(".")[2])
        assert f"{found:.{decimals}f}" == number


def test_replace_one() -> None:
    replaced, added = said(r"for the same noise, ([\d.]+) against ([\d.]+) at the settings above")
    settings = {"probability": 0.01, "delta": 1e-5}
    assert f"{epsilon(REPLACE, steps=1000, **settings):.1f}" == replaced
    assert f"{epsilon(ADD_OR_REMOVE, steps=1000, **settings):.1f}" == added


def test_the_grid() -> None:
    (most,) = said(r"differs from 1e-4, used in reports, by less than ([\d.]+)")
    settings = {"probability": 0.01, "delta": 1e-5}
    for steps in (100, 1000, 10_000):
        fine = epsilon(ADD_OR_REMOVE, steps=steps, **settings)
        coarse = epsilon(ADD_OR_REMOVE, steps=steps, interval=1e-3, **settings)
        assert 0 <= coarse - fine < float(most)


def test_a_variance_shows_itself() -> None:
    share, change, deviations = said(
        r"show it to ([\d.]+) %, while one client more among a hundred changes it by ([\d.]+) %, "
        r"which is ([\d.]+) standard deviations"
    )
    # The relative deviation of the sample variance of d normal numbers is sqrt(2 / d).
    relative = math.sqrt(2 / 1e6)
    assert f"{100 * relative:.2f}" == share
    assert f"{100 * (1 / 100):.0f}" == change
    assert f"{(1 / 100) / relative:.1f}" == deviations
