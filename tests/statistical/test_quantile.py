"""Both parts of a quantile release carry the noise that the proof is about."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from shared.privacy.noise import NoiseSource
from shared.privacy.quantile import QuantileClipping, QuantileGaussian, QuantileSum

pytestmark = pytest.mark.statistical

ALARM = 1e-4
CLIPPING = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=2.0, initial=0.7)
Draws = npt.NDArray[np.float64]


def released(runs: int, seed: int, *, z: float = 1.3) -> tuple[Draws, Draws]:
    """Release empty cohorts of 50 expected clients: noise on two coordinates, and on the count."""
    mechanism = QuantileGaussian(noise_multiplier=z, clipping=CLIPPING, clipping_norm=0.7)
    means, counts = [], []
    for run in range(runs):
        total = QuantileSum(dimension=2, clipping_norm=0.7)
        source = NoiseSource.seeded(seed, run)
        release = mechanism.release(total, expected_count=50.0, source=source)
        means.append(release.mean.vector.astype(np.float64) * 50.0)
        counts.append((release.fraction_within - 0.5) * 50.0)
    return np.stack(means), np.array(counts)


def alarm(draws: Draws, stddev: float) -> bool:
    """Two-sided chi-square test of the variance with known mean zero, level ``ALARM``."""
    statistic = float(np.sum(np.square(draws)) / stddev**2)
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], draws.size)
    return not low <= statistic <= high


def test_update_and_count_have_their_noise() -> None:
    """Variances over 12,000 releases and no correlation between parts; false alarm 4e-4.

    Power: 5 % less noise moves the statistic of the count by 7.5 of its deviations, so a miss has
    probability below 2e-4; that of the update by 10.7.
    """
    means, counts = released(12_000, 31)
    of_update = 0.7 / math.sqrt(1.3**-2 - (2 * 2.0) ** -2)
    assert not alarm(means, of_update)
    assert not alarm(counts, 2.0)
    assert stats.kstest(counts / 2.0, "norm").pvalue > ALARM
    assert alarm(0.95 * means, of_update)
    assert alarm(0.95 * counts, 2.0)
    correlation = np.mean(means[:, 0] * counts) / (of_update * 2.0)
    assert abs(correlation) < 3.9 / math.sqrt(counts.size)


def test_peers_bug_the_update_keeps_the_whole_noise_multiplier() -> None:
    """With noise z on the update besides a noised count the release would cost more than z."""
    means, _ = released(12_000, 32)
    assert alarm(means, 1.3 * 0.7)
