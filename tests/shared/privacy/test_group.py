from __future__ import annotations

import math
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from shared.errors import InvalidValue
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import (
    GaussianEvent,
    NeighboringRelation,
    NonPrivateEvent,
    SkellamEvent,
)
from shared.privacy.group import group_epsilon

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = NeighboringRelation.REPLACE_ONE
STEPS = GaussianEvent(noise_multiplier=1.0, sampling_probability=0.01, count=1000)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "known"), [(2, 3.98), (4, 8.90), (8, 20.9)])
def test_known_values(size: int, known: float) -> None:
    """The mixture-of-Gaussians figures at q = 0.01, noise 1, 1,000 steps: within 0.5 %."""
    assert group_epsilon(STEPS, size=size, delta=1e-5, relation=ADD) == pytest.approx(
        known, rel=5e-3
    )


def test_it_equals_dp_accounting_called_directly() -> None:
    theirs = PLDAccountant(value_discretization_interval=1e-3)
    q = 0.1
    mixture = dp_event.MixtureOfGaussiansDpEvent(
        3.0, [0.0, 1.0, 2.0], [(1 - q) ** 2, 2 * q * (1 - q), q**2]
    )
    theirs.compose(mixture, 5)
    event = GaussianEvent(noise_multiplier=3.0, sampling_probability=q, count=5)
    ours = group_epsilon(event, size=2, delta=1e-5, relation=ADD)
    assert ours == pytest.approx(theirs.get_epsilon(1e-5), abs=1e-6)


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_one_unit_is_the_plain_figure(relation: NeighboringRelation) -> None:
    terms: Any = {"delta": 1e-5, "relation": relation}
    assert group_epsilon(STEPS, size=1, **terms) == epsilon_of(STEPS, **terms)
    assert group_epsilon(size=3, **terms) == 0.0
    assert group_epsilon(NonPrivateEvent(), size=3, **terms) == math.inf


def test_without_sampling_a_person_counts_as_less_noise() -> None:
    event = GaussianEvent(noise_multiplier=6.0, count=2)
    for relation in (ADD, REPLACE):
        less = GaussianEvent(noise_multiplier=2.0, count=2)
        expected = epsilon_of(less, delta=1e-5, relation=relation)
        ours = group_epsilon(event, size=3, delta=1e-5, relation=relation)
        assert ours == pytest.approx(expected, rel=1e-3)


def test_replace_one_assumes_that_everyone_takes_part() -> None:
    event = GaussianEvent(noise_multiplier=6.0, sampling_probability=0.5)
    whole = GaussianEvent(noise_multiplier=3.0)
    ours = group_epsilon(event, size=2, delta=1e-5, relation=REPLACE)
    assert ours == epsilon_of(whole, delta=1e-5, relation=REPLACE)


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_with_skellam_noise_everyone_is_assumed_to_take_part(relation: NeighboringRelation) -> None:
    """On a fine grid the figure is Renyi's of Gaussian noise divided by the size, within 2 %."""
    terms: Any = {"delta": 1e-5, "relation": relation}
    skellam = SkellamEvent(noise_multiplier=12.0, grid=2**18, sampling_probability=0.5, count=3)
    gaussian = GaussianEvent(noise_multiplier=9.0, sampling_probability=0.5, count=2)
    whole = (
        GaussianEvent(noise_multiplier=4.0, count=3),
        GaussianEvent(noise_multiplier=3.0, count=2),
    )
    exact = epsilon_of(*whole, accountant="rdp", **terms)
    assert exact <= group_epsilon(skellam, gaussian, size=3, **terms) <= 1.02 * exact
    alone = epsilon_of(whole[0], accountant="rdp", **terms)
    assert alone <= group_epsilon(skellam, size=3, **terms) <= 1.02 * alone
    assert group_epsilon(skellam, size=1, **terms) == epsilon_of(skellam, **terms)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_a_size_is_a_positive_integer(size: Any) -> None:
    with pytest.raises(InvalidValue, match="size"):
        group_epsilon(STEPS, size=size, delta=1e-5, relation=ADD)
