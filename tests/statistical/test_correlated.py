"""The released noise of a whole run has the covariance that the proof is about."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from shared.privacy.correlated import CorrelatedGaussian, CorrelatedNoise, CorrelatedTerms
from shared.privacy.mechanism import ClippedSum
from shared.privacy.noiserows import NoiseRows

pytestmark = pytest.mark.statistical

ALARM = 1e-4
ROUNDS, BANDS, SEPARATION, DIMENSION, COUNT = 12, 4, 5, 20_000, 30.0
TERMS = CorrelatedTerms(bands=BANDS, min_separation=SEPARATION, rounds=ROUNDS)
Matrix = npt.NDArray[np.float64]


def root(bands: int) -> Matrix:
    """Build C from exact binomials."""
    c = np.zeros((ROUNDS, ROUNDS))
    for k in range(bands):
        c += math.comb(2 * k, k) / 4**k * np.eye(ROUNDS, k=-k)
    return c


def released(seed: int, *, terms: CorrelatedTerms = TERMS, z: float = 1.3) -> Matrix:
    """Release a run of empty cohorts: noise alone, one row a round."""
    mechanism = CorrelatedGaussian(noise_multiplier=z, clipping_norm=0.7, terms=terms)
    noise = CorrelatedNoise(terms, dimension=DIMENSION, rows=NoiseRows.seeded(seed))
    rows = []
    for number in range(1, ROUNDS + 1):
        total = ClippedSum(dimension=DIMENSION, clipping_norm=0.7)
        release = mechanism.release(total, expected_count=COUNT, server_round=number, noise=noise)
        rows.append(release.vector.astype(np.float64))
    return np.stack(rows)


def alarm(rows: Matrix, *, z: float = 1.3) -> bool:
    """Whiten with C and test for independent unit normals; level ``2 * ALARM``.

    The sensitivity is written out: three turns of a client, the last cut to two of four rows.
    """
    squares = [(math.comb(2 * k, k) / 4**k) ** 2 for k in range(BANDS)]
    sensitivity = math.sqrt(2 * sum(squares) + sum(squares[: ROUNDS - 2 * SEPARATION]))
    white = root(BANDS) @ rows * COUNT / (z * 0.7 * sensitivity)
    power = float(np.sum(np.square(white)))
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], white.size)
    products = (white @ white.T / math.sqrt(DIMENSION))[np.triu_indices(ROUNDS, 1)]
    together = float(np.sum(np.square(products)))
    return not low <= power <= high or together > stats.chi2.ppf(1 - ALARM, products.size)


def test_the_noise_of_a_run_has_the_exact_covariance() -> None:
    """Power and all 66 cross products of 12 rows of 20,000; false alarm 2e-4."""
    assert not alarm(released(21))


def test_wrong_noise_is_caught() -> None:
    """Noise 5 % too small, a band too few, and independent noise; caught 20 of 20 times each.

    The power statistic of 5 % less noise is off by 33 of its deviations, a lost band (0.3125)
    moves each of nine cross products by 44 of theirs. Right noise raises no alarm in 20 runs
    except with probability 0.004.
    """
    fewer = CorrelatedTerms(bands=BANDS - 1, min_separation=SEPARATION, rounds=ROUNDS)
    alone = CorrelatedTerms(bands=1, min_separation=SEPARATION, rounds=ROUNDS)
    for seed in range(20):
        assert not alarm(released(seed))
        assert alarm(released(seed, z=0.95 * 1.3))
        assert alarm(released(seed, terms=fewer, z=1.3 * TERMS.sensitivity / fewer.sensitivity))
        assert alarm(released(seed, terms=alone, z=1.3 * TERMS.sensitivity / alone.sensitivity))


def test_rows_are_normal() -> None:
    """Kolmogorov-Smirnov on the last row, 20,000 draws; false alarm 1e-4."""
    row = released(22)[-1]
    stddev = CorrelatedGaussian(noise_multiplier=1.3, clipping_norm=0.7, terms=TERMS).noise_stddev(
        ROUNDS
    )
    assert stats.kstest(row * COUNT / stddev, "norm").pvalue > ALARM
