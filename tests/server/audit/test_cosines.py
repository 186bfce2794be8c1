"""Cosines: published answers, exact nulls by quadrature, the pooled bound by its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from server.audit.cosines import (
    andrew_epsilon,
    andrew_from_moments,
    andrew_lower_bound,
    null_tail,
    pooled,
    two_normals,
)
from shared.errors import InvalidValue, TooFewCanaries
from tests.server.audit.oracles import gaussian_epsilon


@pytest.mark.parametrize(("dimension", "expected"), [(200, 1.394838), (2000, 1.3880321)])
def test_the_published_lower_bound(dimension: int, expected: float) -> None:
    """Known answers of google-research/federated, one_shot_epe, seed 0xBAD5EED."""
    scale = dimension**-0.5
    cosines = np.random.default_rng(0xBAD5EED).normal(scale, scale, 100)
    found = andrew_lower_bound(cosines, dimension=dimension, delta=1e-2, alpha=1e-2)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("dimension", "expected"), [(200, 2.375326), (2000, 2.317789)])
def test_the_published_estimate(dimension: int, expected: float) -> None:
    scale = dimension**-0.5
    found = andrew_from_moments(scale, scale, dimension=dimension, delta=1e-2)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dimension", [3, 40, 900])
@pytest.mark.parametrize("cosine", [-0.2, 0.0, 0.01, 0.3])
def test_the_null_is_the_density_of_the_sphere(dimension: int, cosine: float) -> None:
    log_scale = math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2)
    scale = math.exp(log_scale) / math.sqrt(math.pi)

    def density(t: float) -> float:
        return float(scale * (1 - t * t) ** ((dimension - 3) / 2))

    expected, _ = integrate.quad(density, cosine, 1, epsabs=1e-12, points=[min(0.9, cosine + 0.1)])
    assert null_tail(cosine, dimension) == pytest.approx(expected, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
def test_two_normals_of_equal_spread_are_a_gaussian_mechanism(mu: float) -> None:
    assert two_normals(mu, 1.0, 1e-5) == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-6)
    assert two_normals(mu, 1.0 + 1e-7, 1e-5) == pytest.approx(two_normals(mu, 1.0, 1e-5), rel=1e-4)


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 1.3), (1.0, 0.8), (0.2, 2.0), (3.0, 0.95)])
def test_two_normals_of_unequal_spread(mean: float, spread: float) -> None:
    """Oracle: the hockey-stick divergence by quadrature is delta at epsilon, the worse way."""
    delta = 1e-3
    epsilon = two_normals(mean, spread, delta)
    null, other = stats.norm(0, 1), stats.norm(mean, spread)
    grid = np.linspace(-30, 30, 400_001)
    step = grid[1] - grid[0]
    found = []
    for left, right in ((null, other), (other, null)):
        excess = left.pdf(grid) - math.exp(epsilon) * right.pdf(grid)
        found.append(float(np.maximum(excess, 0).sum() * step))
    assert max(found) == pytest.approx(delta, rel=1e-4)


def test_two_normals_that_are_alike_need_no_epsilon() -> None:
    assert two_normals(1e-9, 1.0, 1e-5) == 0.0
    assert two_normals(1e-3, 1.0 + 1e-6, 1e-2) == 0.0


def test_the_pooled_bound_follows_its_formula() -> None:
    """mu = sqrt(d) mean, SE = 1 / sqrt(k), one-sided 95 %."""
    cosines = np.random.default_rng(0).normal(0.012, 0.01, 64)
    found = pooled(cosines, dimension=10_000, delta=1e-5)
    mu = 100 * cosines.mean()
    assert found.mu == pytest.approx(mu)
    assert found.standard_error == pytest.approx(1 / 8)
    assert found.epsilon == pytest.approx(gaussian_epsilon(mu, 1e-5), abs=1e-6)
    assert found.lower == pytest.approx(gaussian_epsilon(mu - 1.6448536 / 8, 1e-5), abs=1e-5)


def test_kept_coordinates_and_coins_widen_the_error() -> None:
    cosines = np.full(100, 0.02)
    found = pooled(cosines, dimension=2500, delta=1e-5, share=0.25, sampling_variance=5.0)
    assert found.mu == pytest.approx(0.02 * 50 / 0.5)
    assert found.standard_error == pytest.approx(math.sqrt((4 + 5) / 100))


def test_canaries_that_lean_away_bound_nothing() -> None:
    found = pooled(np.full(10, -0.5), dimension=100, delta=1e-5)
    assert found.mu == pytest.approx(-5.0)
    assert found.epsilon == found.lower == 0.0
    assert andrew_epsilon(np.array([-0.5, -0.4]), dimension=100, delta=1e-5) is None


def test_refusals() -> None:
    with pytest.raises(TooFewCanaries):
        pooled(np.zeros(0), dimension=100, delta=1e-5)
    with pytest.raises(InvalidValue):
        pooled(np.zeros(3), dimension=100, delta=1e-5, alpha=1.0)
    with pytest.raises(InvalidValue):
        andrew_from_moments(0.1, 0.1, dimension=10, delta=0.0)
    assert andrew_epsilon(np.array([0.1]), dimension=100, delta=1e-5) is None
    assert andrew_epsilon(np.array([0.1, 0.1]), dimension=100, delta=1e-5) is None
