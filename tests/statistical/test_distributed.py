"""Noise that clients add together is what it claims to be. Fixed seeds; alarm rates are stated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shared.privacy.distributed import DistributedSkellam, encode_update, noise_share
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource

pytestmark = pytest.mark.statistical

ALARM = 1e-4
COARSE = DistributedSkellam(noise_multiplier=2.0, clipping_norm=1.0, grid=4)


def aggregate(
    mechanism: DistributedSkellam,
    dimension: int,
    *,
    cohort: int,
    survivors: int,
    seed: int,
    factor: float = 1.0,
) -> np.ndarray:
    """Return the released noise in grid units of zero updates; ``factor`` scales the shares."""
    zero = clip_update(
        AdapterDelta(vector=np.zeros(dimension, np.float32)), clipping_norm=mechanism.clipping_norm
    )
    total = np.zeros(dimension, dtype=np.uint32)
    for client in range(survivors):
        source = NoiseSource.seeded(seed, "client", client)
        encoded = encode_update(zero, grid=mechanism.grid, source=source)
        variance = factor * mechanism.variance
        total += noise_share(encoded, variance=variance, cohort=cohort, source=source).words
    released = mechanism.release(
        total,
        cohort=cohort,
        survivors=survivors,
        expected_count=1.0,
        source=NoiseSource.seeded(seed, "server"),
    )
    scale = mechanism.grid / mechanism.clipping_norm
    return released.vector.astype(np.float64) * scale


def variance_alarm(drawn: np.ndarray, variance: float) -> bool:
    """Two-sided test of the variance at level ``ALARM``, with the exact fourth moment."""
    spread = ((2 * variance**2 + variance) / drawn.size) ** 0.5
    limit = float(stats.norm.ppf(1 - ALARM / 2)) * spread
    return bool(abs(float(np.mean(np.square(drawn))) - variance) > limit)


@pytest.mark.parametrize(("cohort", "survivors"), [(1, 1), (5, 5), (5, 3), (20, 14), (40, 1)])
def test_the_aggregate_noise_follows_the_exact_law_whatever_drops_out(
    cohort: int, survivors: int
) -> None:
    """Chi-square on 100,000 coordinates, 50 cells; false alarm 1e-4 for each pattern."""
    drawn = aggregate(COARSE, 100_000, cohort=cohort, survivors=survivors, seed=1)
    law = stats.skellam(COARSE.variance / 2, COARSE.variance / 2)
    edges = np.arange(-24, 25)
    expected = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]])) * drawn.size
    whole = np.round(drawn).astype(np.int64)
    assert np.array_equal(whole, drawn)
    seen = np.bincount(np.searchsorted(edges, whole, side="left"), minlength=expected.size)
    assert expected.min() > 5
    assert stats.chisquare(seen, expected).pvalue > ALARM


@pytest.mark.slow
def test_shares_five_percent_too_small_are_caught() -> None:
    """Power: 5 % less variance in every share is caught in at least 198 of 200 runs.

    5 % is 7 deviations of the estimate at 40,000 coordinates and the alarm is at 3.9: a miss has
    probability 1e-3 per run. More than one false alarm in 200 runs has probability 2e-4.
    """
    mechanism = DistributedSkellam(noise_multiplier=2.0, clipping_norm=1.0, grid=2**10)
    caught = alarms = 0
    for run in range(200):
        small, right = (
            aggregate(mechanism, 40_000, cohort=3, survivors=3, seed=run, factor=factor)
            for factor in (0.95, 1.0)
        )
        caught += variance_alarm(small, mechanism.variance)
        alarms += variance_alarm(right, mechanism.variance)
    assert caught >= 198
    assert alarms <= 1


def test_a_server_that_forgets_the_top_up_is_caught() -> None:
    """One of three dropped: a third of the variance is missing, 47 deviations."""
    mechanism = DistributedSkellam(noise_multiplier=2.0, clipping_norm=1.0, grid=2**10)
    complete = aggregate(mechanism, 40_000, cohort=3, survivors=2, seed=7)
    assert not variance_alarm(complete, mechanism.variance)
    lacking = aggregate(mechanism, 40_000, cohort=2, survivors=2, seed=7, factor=2 / 3)
    assert variance_alarm(lacking, mechanism.variance)


def test_noise_says_nothing_about_the_cohort() -> None:
    """Sums of squares of 200,000 coordinates under four cohorts agree; false alarm 1e-4 each."""
    for cohort, survivors in [(3, 3), (10, 7), (50, 34), (4, 1)]:
        drawn = aggregate(COARSE, 200_000, cohort=cohort, survivors=survivors, seed=3)
        assert not variance_alarm(drawn, COARSE.variance)


def test_one_share_alone_is_uncorrelated_with_the_rest() -> None:
    """Shares of two clients over 200,000 coordinates, at 4.06 deviations; false alarm 1e-4."""
    zero = clip_update(AdapterDelta(vector=np.zeros(200_000, np.float32)), clipping_norm=1.0)
    first, second = (
        COARSE.share(zero, cohort=2, source=NoiseSource.seeded(4, client))
        .words.view(np.int32)
        .astype(np.float64)
        for client in range(2)
    )
    spread = float(np.std(first) * np.std(second)) / first.size**0.5
    assert abs(float(np.mean(first * second))) < 4.06 * spread
