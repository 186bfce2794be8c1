"""The skew-normal curve: against scipy, against quadrature, and against whole spaces of secrets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as reference

from server.audit import skewnormal
from server.audit.skewnormal import SkewNormal
from shared.errors import TooFewCanaries


@pytest.mark.parametrize("shape", [0.0, 0.7, -0.7, 4.0, -4.0])
@pytest.mark.parametrize("z", [-2.5, -1.0, 0.0, 1.5])
def test_the_body_agrees_with_scipy(shape: float, z: float) -> None:
    curve = SkewNormal(loc=10.0, scale=2.0, shape=shape)
    expected = float(reference.skewnorm.cdf(10 + 2 * z, shape, loc=10, scale=2))
    assert math.exp(curve.log_cdf(10 + 2 * z)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("shape", "z"), [(0.0, -12.0), (-3.0, -9.0), (1.0, -6.0), (3.0, -2.5)])
def test_the_far_tail_agrees_with_quadrature(shape: float, z: float) -> None:
    """The density is integrated on a fine grid after its largest value is divided out."""
    peak = float(reference.skewnorm.logpdf(z, shape))
    grid = z - np.linspace(0, 4, 400_001)
    area = integrate.simpson(np.exp(reference.skewnorm.logpdf(grid, shape) - peak), x=-grid)
    found = SkewNormal(loc=0.0, scale=1.0, shape=shape).log_cdf(z)
    assert found == pytest.approx(peak + math.log(float(area)), abs=1e-6)


def test_the_normal_tail_is_known_in_closed_form() -> None:
    found = SkewNormal(loc=0.0, scale=1.0, shape=0.0).log_cdf(-30.0)
    assert found == pytest.approx(float(reference.norm.logcdf(-30.0)), rel=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("shape", [0.0, 2.0, -5.0])
def test_the_fit_finds_the_curve_that_the_losses_came_from(shape: float) -> None:
    """20,000 draws: quantiles within 0.05 standard deviations (more than 5 standard errors)."""
    drawn = reference.skewnorm.rvs(shape, loc=30, scale=4, size=20_000, random_state=3)
    curve = skewnormal.fit(np.asarray(drawn, dtype=np.float64))
    assert curve is not None
    for share in (0.01, 0.1, 0.5, 0.9):
        true = float(reference.skewnorm.ppf(share, shape, loc=30, scale=4))
        found = float(reference.skewnorm.ppf(share, curve.shape, loc=curve.loc, scale=curve.scale))
        assert found == pytest.approx(true, abs=0.05 * 4)


def test_a_tail_heavier_than_any_skew_normal_is_cut_to_the_steepest() -> None:
    curve = skewnormal.fit(np.concatenate([np.zeros(99), [50.0]]) + np.linspace(0, 1e-3, 100))
    assert curve is not None
    assert math.isfinite(curve.shape)
    assert curve.shape > 5


def test_losses_that_are_all_the_same_have_no_curve() -> None:
    assert skewnormal.fit(np.full(64, 3.25)) is None


def test_too_few_losses_are_refused() -> None:
    with pytest.raises(TooFewCanaries, match="losses=15"):
        skewnormal.fit(np.arange(15.0))
