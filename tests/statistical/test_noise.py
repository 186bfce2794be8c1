"""The noise is what it claims to be. Seeds are fixed; docstrings state the false-alarm rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shared.privacy.mechanism import AdapterDelta, ClippedSum, GaussianMechanism, clip_update
from shared.privacy.noise import NoiseSource

pytestmark = pytest.mark.statistical

ALARM = 1e-4


def _variance_alarm(draws: np.ndarray, stddev: float) -> bool:
    """Two-sided chi-square test of the variance with known mean zero, level ``ALARM``."""
    statistic = float(np.sum(np.square(draws)) / stddev**2)
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], draws.size)
    return not low <= statistic <= high


def _release(mechanism: GaussianMechanism, dimension: int, source: NoiseSource) -> np.ndarray:
    total = ClippedSum(dimension=dimension, clipping_norm=mechanism.clipping_norm)
    zero = AdapterDelta(vector=np.zeros(dimension, dtype=np.float32))
    total.add(clip_update(zero, clipping_norm=mechanism.clipping_norm))
    return mechanism.release(total, expected_count=50.0, source=source).vector.astype(np.float64)


def test_normals_are_standard_normal() -> None:
    """Kolmogorov-Smirnov on 200,000 draws; false alarm 1e-4 for a fresh seed."""
    assert stats.kstest(NoiseSource.seeded(11).normal(200_000), "norm").pvalue > ALARM


def test_the_tails_are_there() -> None:
    """Chi-square over 14 cells out to 3.5 deviations, 400,000 draws; false alarm 1e-4."""
    draws = NoiseSource.seeded(12).normal(400_000)
    edges = np.array([-np.inf, *np.arange(-3.0, 3.5, 0.5), np.inf])
    seen, _ = np.histogram(draws, bins=edges)
    expected = np.diff(stats.norm.cdf(edges)) * draws.size
    assert stats.chisquare(seen, expected).pvalue > ALARM


def test_uniforms_are_uniform_and_integers_unbiased() -> None:
    """Kolmogorov-Smirnov and chi-square; false alarm 1e-4 each."""
    source = NoiseSource.seeded(13)
    assert stats.kstest(source.uniform(200_000), "uniform").pvalue > ALARM
    counts = np.bincount(source.integers(0, 7, 70_000), minlength=7)
    assert stats.chisquare(counts).pvalue > ALARM


def test_draws_are_independent_within_and_between_calls() -> None:
    """Four correlations over up to 200,000 pairs, at 4.06 deviations; false alarm 2e-4."""
    source = NoiseSource.seeded(14)
    n = 200_000
    first, second = source.normal(n), source.normal(n)
    half = first[: n // 2], first[n // 2 :]
    pairs = [(first[1:], first[:-1]), (first, second), half, (first**2 - 1, second**2 - 1)]
    for left, right in pairs:
        spread = float(np.std(left) * np.std(right)) / math.sqrt(left.size)
        assert abs(float(np.mean(left * right))) < 4.06 * spread


def test_rounds_and_runs_are_uncorrelated() -> None:
    """The same, between neighbouring seeds and rounds; false alarm 1e-4 for the pair."""
    n = 100_000
    base = NoiseSource.seeded(1, "round", 1).normal(n)
    for other in (NoiseSource.seeded(1, "round", 2), NoiseSource.seeded(2, "round", 1)):
        assert abs(float(np.mean(base * other.normal(n)))) < 4.06 / math.sqrt(n)


def test_the_released_noise_has_the_accounted_deviation() -> None:
    """Chi-square on the variance of 100,000 coordinates; false alarm 1e-4."""
    mechanism = GaussianMechanism(noise_multiplier=1.3, clipping_norm=0.7)
    draws = _release(mechanism, 100_000, NoiseSource.seeded(15))
    assert not _variance_alarm(draws, 1.3 * 0.7 / 50.0)
    assert stats.kstest(draws / (1.3 * 0.7 / 50.0), "norm").pvalue > ALARM


def test_noise_five_percent_too_small_is_caught() -> None:
    """Power of the test above: 5 % less noise is caught in 200 of 200 runs.

    At 20,000 coordinates the statistic is off by 9.9 of its deviations, so a miss has probability
    below 1e-8; right noise raises no alarm in 200 runs except with probability 0.02.
    """
    small = GaussianMechanism(noise_multiplier=0.95, clipping_norm=1.0)
    right = GaussianMechanism(noise_multiplier=1.0, clipping_norm=1.0)
    caught = alarms = 0
    for run in range(200):
        caught += _variance_alarm(_release(small, 20_000, NoiseSource.seeded(run)), 1 / 50.0)
        alarms += _variance_alarm(_release(right, 20_000, NoiseSource.seeded(run)), 1 / 50.0)
    assert caught == 200
    assert alarms <= 1


def test_peers_bug_noise_divided_again_per_tensor() -> None:
    """Noise is drawn once for the whole vector: any slice has the full deviation; alarm 1e-4."""
    mechanism = GaussianMechanism(noise_multiplier=2.0, clipping_norm=1.0)
    draws = _release(mechanism, 60_000, NoiseSource.seeded(16))
    for part in np.split(draws, 6):
        assert not _variance_alarm(part, 2.0 / 50.0)
