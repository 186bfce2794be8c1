"""The Renyi bound against numerically exact divergences of the Skellam law, in both directions."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import dp_accounting
import numpy as np
import numpy.typing as npt
import pytest
from dp_accounting.rdp import RdpAccountant as TheirRdp
from scipy import special, stats

from shared.privacy.accountant import epsilon_of
from shared.privacy.events import NeighboringRelation, SkellamEvent
from shared.privacy.skellam import shifted, skellam_curve

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = NeighboringRelation.REPLACE_ONE
Logs = npt.NDArray[np.float64]
REACH = 400


@lru_cache(maxsize=64)
def log_law(variance: float, shift: int = 0) -> Logs:
    """Return log probabilities of shift + Skellam on -REACH..REACH, by ratios of Bessel functions.

    ``I_{k+1} / I_k`` is computed downwards, where its continued fraction is stable, so the tails
    keep their relative precision far below the smallest float.
    """
    top = 3 * REACH
    ratio = np.zeros(top + 2)
    for k in range(top, -1, -1):
        ratio[k] = 1.0 / (2.0 * (k + 1) / variance + ratio[k + 1])
    logs = math.log(float(special.ive(0, variance))) + np.concatenate(
        [[0.0], np.cumsum(np.log(ratio[:top]))]
    )
    return np.asarray(logs[np.abs(np.arange(-REACH, REACH + 1) - shift)])


def mixed(q: float, base: Logs, moved: Logs) -> Logs:
    """Return the log probabilities of ``(1-q) base + q moved``."""
    if q == 1.0:
        return moved
    return np.asarray(np.logaddexp(math.log1p(-q) + base, math.log(q) + moved))


def divergence(order: float, p: Logs, q: Logs) -> float:
    """Return the Renyi divergence D_order(p || q) by direct summation."""
    return float(special.logsumexp(order * p + (1 - order) * q)) / (order - 1)


def test_the_oracle_is_the_skellam_law() -> None:
    for variance in (0.3, 5.0, 120.0):
        exact = stats.skellam(variance / 2, variance / 2).pmf(np.arange(-REACH, REACH + 1))
        assert np.allclose(np.exp(log_law(variance)), exact, rtol=1e-9, atol=1e-15)
        assert float(np.exp(log_law(variance)).sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("grid", [1, 2, 5])
@pytest.mark.parametrize("z", [0.3, 0.7, 1.0, 2.0, 4.0])
def test_the_bound_holds_in_one_dimension_at_every_order(grid: int, z: float) -> None:
    variance = (z * grid) ** 2
    base, moved = log_law(variance), log_law(variance, grid)
    orders = (1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 7.9, 8.0, 16.0, 32.0)
    ours = skellam_curve(1.0, z, grid, ADD, orders)
    for order, bound in zip(orders, ours, strict=True):
        truth = divergence(order, moved, base)
        assert truth == pytest.approx(divergence(order, base, moved), rel=1e-9)
        assert truth <= bound


def test_the_bound_is_close_where_noise_is_large() -> None:
    for z, grid, slack in [(10.0, 1, 0.025), (4.0, 5, 0.006), (10.0, 2, 0.006)]:
        variance = (z * grid) ** 2
        for order in (2.0, 8.0):
            truth = divergence(order, log_law(variance, grid), log_law(variance))
            bound = float(shifted(np.array([order]), z, grid, 1)[0])
            assert truth <= bound <= (1 + slack) * truth


@pytest.mark.parametrize("move", [(3, 0), (2, 2), (1, 2), (1, -1)])
def test_the_bound_holds_in_two_dimensions(move: tuple[int, int]) -> None:
    """L2 norms up to 3, L1 norms up to 4: divergences of independent coordinates add."""
    for z, q in itertools.product((0.5, 1.0, 3.0), (1.0, 0.3)):
        variance = (3 * z) ** 2
        size = 120
        middle = slice(REACH - size, REACH + size + 1)
        base_1d, first, second = (log_law(variance, s)[middle] for s in (0, *move))
        base = np.add.outer(base_1d, base_1d).ravel()
        moved = mixed(q, base, np.add.outer(first, second).ravel())
        ours = skellam_curve(q, z, 3, ADD, (2.0, 3.0, 8.0))
        for order, bound in zip((2.0, 3.0, 8.0), ours, strict=True):
            assert max(divergence(order, moved, base), divergence(order, base, moved)) <= bound


@pytest.mark.parametrize("q", [1e-3, 0.05, 0.3, 0.9])
@pytest.mark.parametrize(("z", "grid"), [(0.4, 2), (1.0, 1), (1.0, 4), (3.0, 4)])
def test_the_bound_holds_for_the_mixture_in_both_directions(q: float, z: float, grid: int) -> None:
    variance = (z * grid) ** 2
    base = log_law(variance)
    mixture = mixed(q, base, log_law(variance, grid))
    orders = (1.2, 2.0, 2.5, 3.0, 5.0, 8.0, 20.0)
    ours = skellam_curve(q, z, grid, ADD, orders)
    for order, bound in zip(orders, ours, strict=True):
        forward, backward = divergence(order, mixture, base), divergence(order, base, mixture)
        assert backward <= forward * (1 + 1e-9) + 1e-12
        assert forward <= bound


def test_the_mixture_bound_is_close_where_noise_is_large() -> None:
    base = log_law(400.0)
    for q in (0.01, 0.3):
        mixture = mixed(q, base, log_law(400.0, 5))
        for order in (2.0, 4.0, 8.0):
            bound = float(skellam_curve(q, 4.0, 5, ADD, (order,))[0])
            truth = divergence(order, mixture, base)
            assert truth <= bound <= 1.01 * truth


@pytest.mark.parametrize("q", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(("z", "grid"), [(1.0, 1), (1.0, 4), (3.0, 4)])
def test_the_bound_holds_for_a_replaced_unit(q: float, z: float, grid: int) -> None:
    variance = (z * grid) ** 2
    base = log_law(variance)
    old, new = (mixed(q, base, log_law(variance, shift)) for shift in (-grid, grid))
    orders = (1.5, 2.0, 3.0, 6.5, 8.0)
    ours = skellam_curve(q, z, grid, REPLACE, orders)
    alone = skellam_curve(q, z, grid, ADD, orders)
    for order, bound, single in zip(orders, ours, alone, strict=True):
        assert divergence(order, new, old) <= bound
        assert single < bound


@pytest.mark.parametrize("size", [2, 3])
def test_the_bound_holds_for_units_that_change_together(size: int) -> None:
    base = log_law(36.0)
    for q in (0.2, 1.0):
        law = base
        for _ in range(size):
            # The units' coins are independent: fold one unit in at a time, by its own shift.
            law = mixed(q, law, np.concatenate([np.full(2, -np.inf), law])[: law.size])
        for relation, order in itertools.product((ADD, REPLACE), (2.0, 5.0)):
            bound = float(skellam_curve(q, 3.0, 2, relation, (order,), size=size)[0])
            inner = slice(20, -20)
            other = base if relation is ADD else law[::-1]
            assert divergence(order, law[inner], other[inner]) <= bound


@pytest.mark.parametrize(
    ("z", "grid", "q", "rounds"),
    [(0.8, 2, 1.0, 1), (1.5, 3, 1.0, 2), (1.0, 2, 0.2, 2), (2.0, 1, 0.5, 3), (1.0, 1, 0.1, 3)],
)
def test_exact_delta_is_below_the_claim(z: float, grid: int, q: float, rounds: int) -> None:
    """Hockey-stick divergences of the composed laws, by enumeration of all outcomes."""
    variance = (z * grid) ** 2
    size = 60
    middle = slice(REACH - size, REACH + size + 1)
    base_1d = log_law(variance)[middle]
    moved_1d = mixed(q, base_1d, log_law(variance, grid)[middle])
    base, moved = np.zeros(1), np.zeros(1)
    for _ in range(rounds):
        base = np.add.outer(base, base_1d).ravel()
        moved = np.add.outer(moved, moved_1d).ravel()
    event = SkellamEvent(noise_multiplier=z, grid=grid, sampling_probability=q, count=rounds)
    for delta in (1e-2, 1e-5, 1e-8):
        epsilon = epsilon_of(event, delta=delta, relation=ADD)
        for one, other in ((moved, base), (base, moved)):
            excess = np.maximum(np.exp(one) - np.exp(epsilon + other), 0.0)
            assert float(excess.sum()) <= delta


@pytest.mark.parametrize("relation", [ADD, REPLACE])
@pytest.mark.parametrize(("q", "z"), [(1.0, 0.5), (1.0, 8.0), (0.01, 1.0), (0.2, 0.6), (0.2, 5.0)])
def test_on_a_fine_grid_it_is_the_gaussian_curve(
    relation: NeighboringRelation, q: float, z: float
) -> None:
    """Against dp-accounting called directly, at integer orders: relative difference below 1e-6."""

    def theirs(orders: tuple[float, ...]) -> Any:
        accountant = TheirRdp(orders)
        gaussian = dp_accounting.GaussianDpEvent(z)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(q, gaussian))
        return np.asarray(accountant.rdp)

    orders = tuple(float(a) for a in (2, 3, 5, 11, 40, 63, 256))
    alpha = np.array(orders)
    exact = theirs(orders)
    if relation is REPLACE:
        doubled, less = theirs(tuple(2 * alpha)), theirs(tuple(2 * alpha - 1))
        triangle = (alpha - 0.5) / (alpha - 1) * doubled + less
        exact = np.minimum(2 * alpha / z**2, triangle) if q < 1 else 2 * alpha / z**2
    ours = skellam_curve(q, z, 2**18, relation, orders)
    assert ours == pytest.approx(exact, rel=1e-6)


def test_more_sampling_less_noise_and_a_coarser_grid_cost_more() -> None:
    orders = (1.3, 2.0, 6.0, 63.0, 1024.0)
    for relation in (ADD, REPLACE):
        chains = [
            [skellam_curve(q, 1.0, 64, relation, orders) for q in (1e-4, 0.01, 0.5, 1.0)],
            [skellam_curve(0.1, z, 64, relation, orders) for z in (1e4, 50.0, 1.0, 0.2, 0.01)],
            [skellam_curve(0.1, 1.0, grid, relation, orders) for grid in (2**18, 64, 4, 1)],
        ]
        for chain in chains:
            for cheap, dear in itertools.pairwise(chain):
                assert (cheap > 0).all()
                assert (cheap <= dear * (1 + 1e-12)).all()
                assert np.isfinite(dear).all()


def test_tiny_divergences_keep_their_digits() -> None:
    """At order 2 the divergence is log(1 + q**2 (exp(1 / z**2) - 1)), to first order in 1 / G."""
    exact = math.log1p(1e-6**2 * math.expm1(1 / 100.0**2))
    assert float(skellam_curve(1e-6, 100.0, 2**18, ADD, (2.0,))[0]) == pytest.approx(
        exact, rel=1e-9
    )


def test_curves_are_kept_read_only() -> None:
    curve = skellam_curve(0.1, 1.0, 8, ADD, (2.0,))
    with pytest.raises(ValueError, match="read-only"):
        curve[0] = 0.0
