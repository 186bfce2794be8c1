"""Histories with Skellam noise beside their Gaussian twins: the theorem, by direct summation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import signal, special, stats

from shared.privacy import likeness
from shared.privacy.accountant import ONLINE, PldAccountant, epsilon_of, reporting_accountant
from shared.privacy.calibration import calibrate
from shared.privacy.events import (
    MAX_DIMENSION,
    Composition,
    GaussianEvent,
    NeighboringRelation,
    NonPrivateEvent,
    SkellamEvent,
)
from shared.privacy.likeness import first, gaussian_twin, log_moments, slack

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = NeighboringRelation.REPLACE_ONE
FINE = 2**18
Array = npt.NDArray[np.float64]


def skellam(q: float, z: float, n: int, grid: int = FINE) -> SkellamEvent:
    return SkellamEvent(noise_multiplier=z, grid=grid, sampling_probability=q, count=n)


def gaussian(q: float, z: float, n: int) -> GaussianEvent:
    return GaussianEvent(noise_multiplier=z, sampling_probability=q, count=n)


def slack_of(*events: SkellamEvent | GaussianEvent) -> float:
    return slack(Composition.of(*events))


def test_the_largest_ratio_and_the_mean_square_are_what_the_theorem_uses() -> None:
    t = np.linspace(0.0, 20.0, 200_001)
    assert float(np.abs(first_of(t)).max()) == first(20.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    exact = float((weights * first_of(nodes) ** 2).sum() / weights.sum())
    assert exact * 24**2 == pytest.approx(26.0)
    for mu in (2.0**20, 2.0**24):
        k, law = rounded_law(mu)
        mean = float((law * first_of(np.abs(k) / math.sqrt(mu)) ** 2).sum())
        assert exact < mean + 1e-6 < 27.0 / 24**2


def first_of(t: Array) -> Array:
    return np.asarray((t**4 - 7.0 * t**2 + 4.0) / 24.0)


@lru_cache(maxsize=8)
def rounded_law(mu: float) -> tuple[Array, Array]:
    """Return the integers within 20 deviations and their rounded normal probabilities."""
    reach = int(20.0 * math.sqrt(mu))
    k = np.arange(-reach, reach + 1, dtype=np.float64)
    upper = -np.abs(k)
    law = special.ndtr((upper + 0.5) / math.sqrt(mu)) - special.ndtr((upper - 0.5) / math.sqrt(mu))
    return k, np.asarray(law)


@lru_cache(maxsize=8)
def log_ratio(mu: float) -> Array:
    """Return ``log(p / r)`` within 20 deviations, in doubles: errors of about 1e-12."""
    k, _ = rounded_law(mu)
    nodes, weights = np.polynomial.legendre.leggauss(6)
    u = nodes / 2.0
    cell = (weights / 2.0) @ np.exp(-np.outer(u, np.abs(k) / mu) - (u**2 / (2.0 * mu))[:, None])
    log_r = -(k**2) / (2.0 * mu) - 0.5 * math.log(2.0 * math.pi * mu) + np.log(cell)
    return np.asarray(log_skellam_law(mu, int(k[-1])) - log_r)


@pytest.mark.parametrize(("mu", "room"), [(2.0**20, 25.0), (2.0**24, 1.6)])
def test_moments_are_bounded_on_either_side(mu: float, room: float) -> None:
    """By direct summation; close where the second order no longer counts."""
    _, law = rounded_law(mu)
    ell = log_ratio(mu)
    orders = np.array([2.0, 10.0, 100.0, 400.0])
    for order, bound in zip(orders, log_moments(orders, mu), strict=True):
        # Less one, and less the first order, which is zero but for what lies outside.
        forward = float((law * (np.expm1(order * ell) - order * np.expm1(ell))).sum())
        backward = float((law * (np.expm1((1 - order) * ell) + (order - 1) * np.expm1(ell))).sum())
        for moment in (forward, backward):
            assert 0.0 < math.log1p(moment) <= bound
        loose = order / (order - 1.0) * math.exp(order * first(20.0) / mu)
        assert bound <= room * loose * forward


def test_moments_are_not_claimed_where_they_say_nothing() -> None:
    assert log_moments(np.array([2.0, 1e12]), 2.0**30)[1] == math.inf
    assert log_moments(np.array([2.0, 1e12]), 2.0**30)[0] < 1e-10


def test_twenty_deviations_are_not_left() -> None:
    """Chernoff's exponents, against the constant of the theorem."""
    for mu in (2.0**20, 2.0**30, 2.0**60):
        x = 20.0 / math.sqrt(mu)
        # x asinh x - sqrt(1 + x**2) + 1 without cancellation.
        skellam_rate = mu * (x * math.asinh(x) - x * x / (math.sqrt(1.0 + x * x) + 1.0))
        assert skellam_rate > 199.9
        assert (20.0 - 0.5 / math.sqrt(mu)) ** 2 / 2.0 > 199.9
    exact = stats.skellam(2.0**9, 2.0**9).sf(320.0)
    assert exact <= math.exp(-(2.0**10) * (0.3125 * math.asinh(0.3125) - math.hypot(1, 0.3125) + 1))


def test_the_slack_is_small_on_the_finest_grid() -> None:
    for q, z, n, most in [(0.1, 0.5, 30, 2e-4), (0.1, 1.0, 100, 1e-4), (1.0, 0.7, 100, 2e-4)]:
        assert 0.0 < slack_of(skellam(q, z, n)) < most


def test_the_slack_solves_the_tail_bound() -> None:
    """At eta, one of the orders brings the probability of a larger loss down to tau."""
    for z, n, grid in [(0.5, 30, FINE), (1.0, 1, FINE), (2.0, 500, 2**15)]:
        eta = slack_of(skellam(0.1, z, n, grid)) / 2.0
        coordinates = float(MAX_DIMENSION) * n
        orders = np.geomspace(2.0, 1e12, 4000)
        logs = coordinates * log_moments(orders, (z * grid) ** 2) - (orders - 1.0) * eta
        tail = coordinates * 2.0 * math.exp(-199.9)
        assert tail + math.exp(float(logs.min())) == pytest.approx(math.exp(-100.0), rel=0.6)
        assert tail + math.exp(float(logs.min())) <= math.exp(-100.0)


def test_the_slack_grows_with_releases_and_coarseness_and_dimension() -> None:
    by_count = [slack_of(skellam(0.1, 0.8, n)) for n in (1, 2, 10, 100, 1000)]
    by_grid = [slack_of(skellam(0.1, 0.8, 10, grid)) for grid in (2**18, 2**17, 2**16, 2**15)]
    by_noise = [slack_of(skellam(0.1, z, 10)) for z in (20.0, 4.0, 1.0, 0.5)]
    for chain in (by_count, by_grid, by_noise):
        assert all(a < b for a, b in itertools.pairwise(chain))
    two = slack_of(skellam(0.1, 0.8, 10), skellam(0.3, 1.1, 5))
    assert slack_of(skellam(0.1, 0.8, 10)) < two < slack_of(skellam(0.1, 0.8, 15))


def test_a_higher_dimension_would_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    before = slack_of(skellam(0.1, 0.81, 10))
    likeness._slack.cache_clear()
    monkeypatch.setattr(likeness, "MAX_DIMENSION", 100 * MAX_DIMENSION)
    after = slack_of(skellam(0.1, 0.81, 10))
    likeness._slack.cache_clear()
    assert 2.0 * before < after < 100.0 * before


def test_where_the_lemma_ends_nothing_is_claimed() -> None:
    assert slack_of(gaussian(0.1, 1.0, 5)) == 0.0
    for outside in (
        skellam(1.0, 1.0, 1, 1023),  # a variance below 2**20
        skellam(1.0, 1.0, 1, 2**11),  # a slack above 0.1
        skellam(1.0, 1.0, 10**45),  # somebody leaves twenty deviations
    ):
        assert slack_of(outside) == math.inf
        assert slack_of(outside, skellam(1.0, 1.0, 1)) == math.inf
        assert reporting_accountant(outside) == "rdp"


def test_the_twin_has_gaussian_noise_of_the_same_variance() -> None:
    history = Composition.of(gaussian(0.1, 1.0, 3), skellam(0.1, 1.0, 4), skellam(0.2, 1.0, 5, 7))
    twin = gaussian_twin(history)
    assert twin.pairs == ((0.1, 1.0, 7), (0.2, 1.0, 5))
    assert twin.skellams == ()
    assert not gaussian_twin(Composition.of(skellam(0.1, 1.0, 1), NonPrivateEvent())).private
    plain = Composition.of(gaussian(0.1, 1.0, 3))
    assert gaussian_twin(plain) is plain


def test_epsilon_and_delta_are_those_of_the_theorem() -> None:
    """``eps' + 2 eta`` and ``exp(eta) delta' + tau (1 + exp(eps' + eta))``, by hand."""
    added, delta, tau = 2e-3, 1e-5, math.exp(-100.0)
    inner = likeness.twin_delta(delta, added)
    for twin in (0.0, 0.7, 8.0, 40.0):
        claimed = likeness.epsilon_from_twin(twin, delta, added)
        assert claimed == twin + added
        whole = math.exp(added / 2) * inner + tau * (1.0 + math.exp(twin + added / 2))
        assert 0.999998 * delta <= whole <= delta
        back = likeness.delta_from_twin(inner, claimed, added)
        assert back == pytest.approx(whole, rel=1e-12)
    assert likeness.epsilon_from_twin(80.0, delta, added) == math.inf
    assert likeness.epsilon_from_twin(math.inf, delta, added) == math.inf
    assert likeness.delta_from_twin(0.3, 1000.0, added) == 1.0
    # Below the slack: what exp(epsilon) lacks of exp(2 eta) is delta.
    below = likeness.delta_from_twin(1e-5, 0.0, added)
    assert below == pytest.approx(math.exp(added / 2) * 1e-5 + math.expm1(added), rel=1e-9)


def test_without_skellam_noise_nothing_is_added() -> None:
    assert likeness.twin_delta(1e-5, 0.0) == 1e-5
    assert likeness.epsilon_from_twin(900.0, 1e-5, 0.0) == 900.0
    assert likeness.delta_from_twin(1e-5, 0.0, 0.0) == 1e-5


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_the_claim_is_a_little_above_the_gaussian_figure(relation: NeighboringRelation) -> None:
    for q, z, n in [(0.1, 0.6, 30), (1.0, 3.0, 20), (0.02, 0.8, 200)]:
        for delta in (1e-3, 1e-7):
            terms: Any = {"delta": delta, "relation": relation, "interval": ONLINE}
            twin = epsilon_of(gaussian(q, z, n), **terms)
            ours = epsilon_of(skellam(q, z, n), **terms)
            assert reporting_accountant(skellam(q, z, n)) == "pld"
            assert twin < ours <= twin + slack_of(skellam(q, z, n)) + 1e-4
            assert ours < epsilon_of(skellam(q, z, n), accountant="rdp", **terms)


def test_a_mixed_history_has_the_figure_of_its_twin() -> None:
    terms: Any = {"delta": 1e-5, "relation": ADD}
    history = (gaussian(0.1, 1.1, 7), skellam(0.1, 1.1, 9), skellam(0.3, 2.0, 4), gaussian(1, 9, 2))
    twins = (gaussian(0.1, 1.1, 16), gaussian(0.3, 2.0, 4), gaussian(1.0, 9.0, 2))
    ours, theirs = epsilon_of(*history, **terms), epsilon_of(*twins, **terms)
    assert theirs < ours < theirs + 1.01 * slack_of(*history[1:3]) + 1e-5


def test_renyi_counts_where_the_comparison_does_not_reach() -> None:
    """Epsilons above about fifty, and epsilons below the slack."""
    terms: Any = {"delta": 1e-5, "relation": ADD}
    for event in (skellam(1.0, 0.5, 60), skellam(1e-4, 50.0, 1, 2**10)):
        assert reporting_accountant(event) == "pld"
        found = epsilon_of(event, **terms)
        assert found == epsilon_of(event, accountant="rdp", **terms)
        assert math.isfinite(found)
    assert epsilon_of(skellam(1.0, 0.5, 60), **terms) > 50.0
    assert epsilon_of(skellam(1e-4, 50.0, 1, 2**10), **terms) < 0.1


def test_epsilon_never_falls_as_releases_are_added() -> None:
    """Over the change from PLD to Renyi too, which this history makes."""
    terms: Any = {"delta": 1e-5, "relation": ADD, "interval": ONLINE}
    events = [skellam(0.01, 1.0, n, 2**13) for n in (1, 30, 40, 60, 100, 200, 300, 400, 1000)]
    words = [reporting_accountant(event) for event in events]
    assert set(words) == {"pld", "rdp"}
    assert words == sorted(words)
    figures = [epsilon_of(event, **terms) for event in events]
    assert all(a <= b for a, b in itertools.pairwise(figures))


def test_one_accountant_fed_release_by_release_agrees_with_all_at_once() -> None:
    accountant = PldAccountant(ADD)
    for _ in range(5):
        accountant.compose(skellam(0.1, 0.9, 3))
        accountant.compose(gaussian(0.1, 0.9, 1))
        accountant.epsilon(1e-5)
    whole = epsilon_of(skellam(0.1, 0.9, 15), gaussian(0.1, 0.9, 5), delta=1e-5, relation=ADD)
    assert accountant.epsilon(1e-5) == pytest.approx(whole, rel=1e-4)
    assert accountant.delta(accountant.epsilon(1e-5)) <= 1e-5 * (1.0 + 1e-6)
    accountant.compose(NonPrivateEvent())
    assert accountant.epsilon(1e-5) == math.inf
    assert accountant.delta(1.0) == 1.0


@pytest.mark.slow
def test_the_noise_for_a_target_is_that_of_gaussian_noise() -> None:
    """It was 15.5 % more by Renyi divergence."""
    terms: Any = {"epsilon": 8.0, "delta": 5e-4, "relation": ADD}
    ours = calibrate(lambda z: skellam(0.1, z, 30), **terms)
    plain = calibrate(lambda z: gaussian(0.1, z, 30), **terms)
    renyi = calibrate(lambda z: skellam(0.1, z, 30), accountant="rdp", **terms)
    assert 1.0 <= ours / plain < 1.002
    assert renyi / plain == pytest.approx(1.155, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("q", "z", "n", "grid", "added", "ours", "plain", "renyi"),
    [
        (0.1, 0.5, 30, 2**18, 1.44e-4, 18.2397, 18.2394, 23.0017),
        (1.0, 3.3, 20, 2**18, 2.87e-6, 6.24847, 6.24846, 6.7610),
        (0.1, 0.8, 100, 2**16, 1.41e-3, 10.9783, 10.9764, 13.8280),
        (0.02, 1.2, 50, 2**14, 7.74e-3, 0.7239, 0.7158, 1.0477),
    ],
)
def test_the_table_of_the_decision_record(
    q: float, z: float, n: int, grid: int, added: float, ours: float, plain: float, renyi: float
) -> None:
    """docs/adr/0010."""
    terms: Any = {"delta": 1e-5, "relation": ADD}
    event = skellam(q, z, n, grid)
    assert slack_of(event) == pytest.approx(added, rel=5e-3)
    assert epsilon_of(event, **terms) == pytest.approx(ours, abs=6e-5)
    assert epsilon_of(gaussian(q, z, n), **terms) == pytest.approx(plain, abs=6e-5)
    assert epsilon_of(event, accountant="rdp", **terms) == pytest.approx(renyi, abs=6e-5)


def log_skellam_law(mu: float, reach: int) -> Array:
    """Return log probabilities of -reach..reach: downward ratios of Bessel functions."""
    top = reach + 4000
    ratio = np.zeros(top + 2)
    for k in range(top, -1, -1):
        ratio[k] = 1.0 / (2.0 * (k + 1) / mu + ratio[k + 1])
    logs = math.log(float(special.ive(0, mu))) + np.concatenate(
        [[0.0], np.cumsum(np.log(ratio[:-1]))]
    )
    return np.asarray(logs[np.abs(np.arange(-reach, reach + 1))])


def worlds(
    law: Array, moves: tuple[int, ...], q: float, relation: NeighboringRelation
) -> tuple[Array, Array]:
    """Return one release in both worlds, for a query of one coordinate that moves by ``moves[0]``.

    The unit takes part with probability q; under replace-one the other unit moves the other way.
    """
    wide = max(moves)
    base = np.pad(law, wide)
    there = np.roll(base, moves[0])
    back = np.roll(base, -moves[0])
    one = (1.0 - q) * base + q * there
    other = base if relation is ADD else (1.0 - q) * base + q * back
    return one, other


def losses(one: Array, other: Array, cell: float, size: int) -> Array:
    """Return the law of ``log(one / other)`` under ``one`` on a grid, rounded down.

    Rounded down, so that the delta found from it is at most the true one.
    """
    keep = (one > 1e-300) & (other > 1e-300)
    loss = np.floor((np.log(one[keep]) - np.log(other[keep])) / cell).astype(np.int64)
    loss = np.clip(loss, -size, size)
    return np.asarray(np.bincount(loss + size, weights=one[keep], minlength=2 * size + 1) * 1.0)


def exact_delta(one: Array, other: Array, rounds: int, epsilon: float) -> float:
    """Hockey-stick divergence of a composition from below, by convolution of losses."""
    if rounds == 1:
        return float(np.maximum(one - math.exp(epsilon) * other, 0.0).sum())
    cell, size = 2e-4, 150_000
    law = losses(one, other, cell, size)
    total = law
    for _ in range(rounds - 1):
        total = signal.fftconvolve(total, law)
    loss = (np.arange(total.size) - rounds * size) * cell
    above = loss > epsilon
    gained = total[above] * -np.expm1(epsilon - loss[above])
    return float(gained.sum())


@pytest.fixture
def one_coordinate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Prove the theorem for vectors of one coordinate: the noise may then be small."""
    likeness._slack.cache_clear()
    monkeypatch.setattr(likeness, "MAX_DIMENSION", 1)
    yield
    likeness._slack.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("one_coordinate")
@pytest.mark.parametrize("relation", [ADD, REPLACE])
@pytest.mark.parametrize(
    ("grid", "z", "q", "rounds"),
    [(2**12, 1.0, 0.2, 1), (2**12, 0.7, 1.0, 1), (2**13, 1.0, 0.3, 2), (2**13, 0.8, 0.2, 3)],
)
def test_exact_deltas_are_below_the_claim_and_close(
    relation: NeighboringRelation,
    grid: int,
    z: float,
    q: float,
    rounds: int,
) -> None:
    """With d = 1 in place of 2**31 the theorem applies to these small variances."""
    mu = (z * grid) ** 2
    assert mu >= 2.0**20
    accountant = PldAccountant(relation)
    accountant.compose(skellam(q, z, rounds, grid))
    law = np.exp(log_skellam_law(mu, int(12.0 * math.sqrt(mu)) + grid))
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    one, other = worlds(law, (grid,), q, relation)
    for delta in (1e-2, 1e-5):
        epsilon = accountant.epsilon(delta)
        forward = exact_delta(one, other, rounds, epsilon)
        backward = exact_delta(other, one, rounds, epsilon)
        assert max(forward, backward) <= delta
        tighter = (1.0 - 0.01) * epsilon
        assert max(exact_delta(a, b, rounds, tighter) for a, b in ((one, other), (other, one))) > (
            delta
        )


@pytest.mark.slow
@pytest.mark.usefixtures("one_coordinate")
def test_exact_deltas_in_two_dimensions_are_below_the_claim() -> None:
    """A move along the diagonal, its norm a little below the grid, at q = 1: losses add up."""
    grid, z = 2**13, 1.0
    # Two releases of one coordinate have as much noise as one release of two.
    added = slack_of(skellam(1.0, z, 2, grid))
    side = int(grid / math.sqrt(2.0))
    law = np.exp(log_skellam_law((z * grid) ** 2, int(12.0 * z * grid) + grid))
    base = np.pad(law, side)
    for epsilon in (1.0, 4.0):
        exact = exact_delta(np.roll(base, side), base, 2, epsilon)
        inner = epsilon - added
        twin = stats.norm.cdf(0.5 - inner) - math.exp(inner) * stats.norm.cdf(-0.5 - inner)
        claimed = likeness.delta_from_twin(float(twin), epsilon, added)
        assert exact <= claimed <= 1.05 * exact
