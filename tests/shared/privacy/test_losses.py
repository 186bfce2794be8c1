"""Losses on a grid. Oracles: dp-accounting's own loops, the exact Gaussian, plain sums."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from shared.errors import InvalidValue
from shared.privacy import accountant
from shared.privacy.accountant import ONLINE, PldAccountant, epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.losses import (
    TAIL_MASS,
    Losses,
    connect_the_dots,
    one_release,
    releases,
    together,
)

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = NeighboringRelation.REPLACE_ONE
THEIRS = {
    ADD: dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    REPLACE: dp_accounting.NeighboringRelation.REPLACE_ONE,
}
KINDS = [
    (1e-300, 1.0, ADD),
    (1e-5, 0.5, ADD),
    (0.01, 1.0, ADD),
    (0.1, 0.6176, ADD),
    (0.5, 3.0, ADD),
    (0.999, 2.0, ADD),
    (1.0, 4.0, ADD),
    (0.3, 1e4, ADD),
    (1e-300, 1.0, REPLACE),
    (1e-5, 0.5, REPLACE),
    (0.1, 0.8, REPLACE),
    (0.5, 3.0, REPLACE),
    (1.0, 4.0, REPLACE),
]
ROUNDING = 1e-12
DELTAS = (1e-2, 1e-4, 1e-5, 1e-8)


@cache
def plain(q: float, z: float, relation: NeighboringRelation) -> Any:
    """One release, built by dp-accounting point by point."""
    return theirs.from_gaussian_mechanism(
        z,
        sampling_prob=q,
        value_discretization_interval=ONLINE,
        neighboring_relation=THEIRS[relation],
    )


def epsilon(ways: tuple[Losses, ...], delta: float) -> float:
    return max(way.epsilon(delta) for way in ways)


def delta(ways: tuple[Losses, ...], at: float) -> float:
    return max(way.delta(at) for way in ways)


def same(ours: tuple[Losses, ...], other: Any) -> None:
    """Compare all figures with dp-accounting's: delta to 1e-12 and a billionth of it."""
    for at in DELTAS:
        off = ROUNDING + 1e-9 * at
        least, most = (other.get_epsilon_for_delta(at + step) for step in (off, -off))
        assert least - 1e-10 <= epsilon(ours, at) <= most + 1e-10
    for at in (0.0, 0.1, 1.0, 4.0):
        expected = pytest.approx(float(other.get_delta_for_epsilon(at)), abs=ROUNDING, rel=1e-9)
        assert delta(ours, at) == expected


@pytest.mark.parametrize(("q", "z", "relation"), KINDS)
def test_one_release_is_that_of_dp_accounting(
    q: float, z: float, relation: NeighboringRelation
) -> None:
    ways = one_release(q, z, relation, ONLINE)
    assert len(ways) == (2 if relation is ADD and q < 1.0 else 1)
    same(ways, plain(q, z, relation))


@pytest.mark.parametrize("count", [2, 30, 400])
@pytest.mark.parametrize(("q", "z", "relation"), [kind for kind in KINDS if kind[0] < 1.0])
def test_many_releases_are_those_of_dp_accounting(
    q: float, z: float, relation: NeighboringRelation, count: int
) -> None:
    same(releases(q, z, count, relation, ONLINE), plain(q, z, relation).self_compose(count))


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_different_releases_add_up_as_in_dp_accounting(relation: NeighboringRelation) -> None:
    kinds = [(0.1, 1.0, 3), (0.4, 3.0, 5), (1.0, 6.0, 1)]
    ours: tuple[Losses, ...] = ()
    other: Any = theirs.identity(value_discretization_interval=ONLINE)
    for q, z, count in kinds:
        part = releases(q, z, count, relation, ONLINE)
        ours = together(ours, part) if ours else part
        one = plain(q, z, relation)
        other = other.compose(one if count == 1 else one.self_compose(count))
    same(ours, other)
    turned = together(
        releases(1.0, 6.0, 1, relation, ONLINE), releases(0.1, 1.0, 3, relation, 1e-3)
    )
    assert epsilon(turned, 1e-5) < epsilon(ours, 1e-5)


def test_grids_are_not_mixed() -> None:
    with pytest.raises(InvalidValue, match="one grid"):
        one_release(1.0, 4.0, ADD, 1e-3)[0].plus(one_release(1.0, 4.0, ADD, 2e-3)[0])


@pytest.mark.parametrize("mu", [0.5, 3.0, 36.5148])
def test_the_exact_gaussian_is_met_from_above(mu: float) -> None:
    """Balle and Wang 2018, Theorem 8; at the last dp-accounting itself overflows to infinity."""

    def excess(at: float) -> float:
        second = math.exp(at + float(stats.norm.logcdf(-at / mu - mu / 2)))
        return float(stats.norm.cdf(mu / 2 - at / mu)) - second - 0.1

    exact = float(optimize.brentq(excess, 0.0, 5000.0, xtol=1e-12))
    ours = one_release(1.0, 1.0 / mu, ADD, 4e-3)[0].epsilon(0.1)
    assert exact - 1e-9 <= ours <= exact + 1e-5


def hockey_stick(one: Losses, at: float) -> float:
    """Sum delta at an epsilon, term by term."""
    losses = [(one.lowest + i) * one.interval for i in range(one.masses.size)]
    terms = (
        mass * -math.expm1(at - loss)
        for loss, mass in zip(losses, one.masses.tolist(), strict=True)
        if loss > at
    )
    return one.infinite + math.fsum(terms)


@settings(max_examples=200, deadline=None)
@given(
    masses=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30).filter(lambda m: sum(m) > 1e-3),
    lowest=st.integers(-40, 20),
    interval=st.sampled_from([1e-3, 0.1, 1.0]),
    asked=st.floats(1e-6, 0.9),
    infinite=st.sampled_from([0.0, 1e-9, 0.1]),
)
def test_epsilon_is_the_smallest_whose_delta_is_small_enough(
    masses: list[float], lowest: int, interval: float, asked: float, infinite: float
) -> None:
    weights = np.array(masses) / sum(masses) * (1.0 - infinite)
    one = Losses(interval=interval, lowest=lowest, masses=weights, infinite=infinite)
    found = one.epsilon(asked)
    assert one.delta(0.3) == pytest.approx(hockey_stick(one, 0.3), abs=1e-12)
    if math.isinf(found):
        assert infinite > asked
        return
    assert hockey_stick(one, found) <= asked * (1 + 1e-9) + 1e-12
    assert found == 0.0 or hockey_stick(one, found * (1 - 1e-6) - 1e-9) >= asked - 1e-12


def test_losses_too_large_for_an_exponential_are_epsilon_themselves() -> None:
    one = Losses(interval=500.0, lowest=0, masses=np.array([0.5, 0.0, 0.0, 0.5]), infinite=0.0)
    assert one.epsilon(0.1) == 1500.0
    assert one.epsilon(0.6) == 0.0


def test_the_window_loses_no_mass() -> None:
    for count in (2, 50, 2000):
        for way in releases(0.1, 0.9, count, ADD, ONLINE):
            assert way.masses.sum() + way.infinite == pytest.approx(1.0, abs=1e-9 * count)
            assert way.infinite >= TAIL_MASS


def test_the_dots_are_exact_on_the_grid_and_above_the_truth_between() -> None:
    def truth(at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        second = np.exp(at) * stats.norm.cdf(-0.5 - at)
        return np.asarray(stats.norm.cdf(0.5 - at) - second)

    points = np.arange(-600, 601) * 0.01
    one = connect_the_dots(truth(points), lowest=-600, interval=0.01)
    for at in (0.0, 0.5, 2.0):
        assert one.delta(at) == pytest.approx(float(truth(np.array(at))), abs=1e-13)
    for at in (0.005, 0.503, 2.0071, 7.0):
        assert one.delta(at) >= float(truth(np.array(at)))


def test_a_grid_of_one_point_has_one_loss() -> None:
    one = connect_the_dots(np.array([0.25]), lowest=3, interval=0.1)
    assert one.masses.tolist() == [0.75]
    assert one.infinite == 0.25


@pytest.mark.parametrize("bad", [[0.1, 0.2], [0.5, math.nan], [1.5, 0.5], [0.5, -0.1]])
def test_what_is_no_curve_of_deltas_is_refused(bad: list[float]) -> None:
    with pytest.raises(InvalidValue, match="deltas"):
        connect_the_dots(np.array(bad), lowest=0, interval=0.1)


def test_a_kept_release_is_shared_read_only_and_changes_no_figure() -> None:
    one_release.cache_clear()
    kept = [releases(0.1, 0.7, n, ADD, ONLINE) for n in range(1, 6)]
    assert one_release.cache_info().misses == 1
    with pytest.raises(ValueError, match="read-only"):
        kept[0][0].masses[0] = 1.0
    for n, ways in enumerate(kept, start=1):
        one_release.cache_clear()
        fresh = releases(0.1, 0.7, n, ADD, ONLINE)
        for mine, other in zip(ways, fresh, strict=True):
            assert np.array_equal(mine.masses, other.masses)
            assert (mine.lowest, mine.infinite) == (other.lowest, other.infinite)


def test_threads_get_the_same_figures() -> None:
    one_release.cache_clear()
    accountant._pld_epsilon.cache_clear()

    def figure(n: int) -> float:
        event = GaussianEvent(noise_multiplier=0.9, sampling_probability=0.1, count=n)
        return epsilon_of(event, delta=1e-5, relation=ADD, interval=ONLINE)

    counts = [1 + i % 7 for i in range(28)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(figure, counts)) == [figure(n) for n in counts]


def test_the_figures_of_a_run_round_by_round() -> None:
    """An accountant that is asked each round, one per figure, and dp-accounting from nothing."""
    growing = PldAccountant(ADD, interval=ONLINE)
    one = GaussianEvent(noise_multiplier=1.5697, sampling_probability=0.2)
    for n in range(1, 13):
        growing.compose(one)
        event = GaussianEvent(noise_multiplier=1.5697, sampling_probability=0.2, count=n)
        alone = epsilon_of(event, delta=5e-4, relation=ADD, interval=ONLINE)
        other = plain(0.2, 1.5697, ADD).self_compose(n).get_epsilon_for_delta(5e-4)
        assert growing.epsilon(5e-4) == pytest.approx(alone, rel=1e-8)
        assert alone == pytest.approx(other, rel=1e-8)
