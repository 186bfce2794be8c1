from __future__ import annotations

import math

import numpy as np
import pytest

from shared.privacy.correlated import CorrelatedTerms
from simulations.benchmarks import correlated, correlated_training
from simulations.benchmarks.protocol import Benchmark


@pytest.mark.parametrize(("bands", "separation", "rounds"), [(1, 3, 9), (4, 4, 12), (9, 2, 9)])
def test_the_noise_of_sums_is_that_of_the_dense_matrices(
    bands: int, separation: int, rounds: int
) -> None:
    """Oracle: the Frobenius norm of ``A C^-1``, by numpy."""
    column = [math.comb(2 * k, k) / 4**k for k in range(min(bands, rounds))]
    c = sum(value * np.eye(rounds, k=-k) for k, value in enumerate(column))
    sums = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(c)
    terms = CorrelatedTerms(bands=bands, min_separation=separation, rounds=rounds)
    exact = terms.sensitivity * np.linalg.norm(sums) / math.sqrt(rounds)
    assert correlated.prefix_rmse(terms) == pytest.approx(exact, rel=1e-9)


def test_one_band_is_independent_noise() -> None:
    """Sums of t independent rows have t times the variance, and k turns cost sqrt(k)."""
    terms = CorrelatedTerms(bands=1, min_separation=4, rounds=12)
    assert correlated.prefix_rmse(terms) == pytest.approx(math.sqrt(3) * math.sqrt(13 / 2))
    assert correlated.best_bands(rounds=12, separation=1) == 1
    assert correlated.best_bands(rounds=32, separation=4) == 4


@pytest.mark.slow
def test_correlated_noise_is_never_above_independent_noise() -> None:
    module: Benchmark = correlated
    result = module.run(quick=True)
    assert result.passed
    assert len(result.rows) == 6
    for row in result.rows:
        values = {key: float(str(value)) for key, value in row.items()}
        assert values["correlated_best_rmse"] <= values["correlated_rmse"]
        independent = values["independent_rmse"]
        assert values["over_independent"] == values["correlated_best_rmse"] / independent
        if values["separation"] == 1:
            assert values["sampled_rmse"] == independent


@pytest.mark.slow
def test_a_quick_training_has_every_noise_at_one_epsilon() -> None:
    module: Benchmark = correlated_training
    result = module.run(quick=True)
    assert [row["noise"] for row in result.rows] == ["correlated", "independent", "sampled"]
    for row in result.rows:
        assert 7.9 < float(str(row["epsilon"])) <= 8.0
        assert float(str(row["loss"])) < 10.0
    assert [check.limit for check in result.checks] == [1.0, 1.0]
