"""Aggregation: bounded whoever lies, uniform whoever counts, noised whoever is missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.aggregation import UniformMean, make_aggregator
from shared.errors import SchemaMismatch
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan

SIZE = 4000


def plan(*, population: int = 100, probability: float = 0.5, noise: float = 1.5) -> PrivacyPlan:
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=noise,
        clipping_norm=2.0,
        sampling_probability=probability,
        rounds=1,
        population=population,
    )


def release(vectors: list[np.ndarray], seed: int = 0, **arguments: float) -> np.ndarray:
    source = NoiseSource.seeded(seed, "test")
    aggregator = make_aggregator(SIZE, plan=plan(**arguments), source=source)  # type: ignore[arg-type]
    for vector in vectors:
        aggregator.add(vector.astype(np.float32))
    found = aggregator.release()
    assert found is not None
    assert found.count == len(vectors)
    return found.vector


def test_an_empty_cohort_releases_noise_of_the_planned_deviation() -> None:
    """Chi-square on 4,000 coordinates; false alarm 0.1 %, and 10 % less noise is caught."""
    noise = release([])
    expected = 1.5 * 2.0 / 50
    low, high = stats.chi2.ppf([0.0005, 0.9995], SIZE) / SIZE
    assert low <= np.mean((noise / expected) ** 2) <= high
    assert not low <= np.mean((0.9 * noise / expected) ** 2) <= high


@given(scale=st.floats(1e-3, 1e30), seed=st.integers(0, 2**31))
def test_one_client_moves_the_mean_by_at_most_the_clip(scale: float, seed: int) -> None:
    direction = np.random.default_rng(seed).standard_normal(SIZE)
    with np.errstate(over="ignore"):
        moved = release([np.float32(scale) * direction.astype(np.float32)]) - release([])
    assert np.linalg.norm(moved) <= 2.0 / 50 * (1 + 1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_client_that_is_not_finite_counts_as_zero(bad: float) -> None:
    vector = np.ones(SIZE)
    vector[3] = bad
    assert np.allclose(release([vector]), release([]))
    mean = UniformMean(SIZE)
    mean.add(vector.astype(np.float32))
    mean.add(np.ones(SIZE, dtype=np.float32))
    found = mean.release()
    assert found is not None
    assert np.allclose(found.vector, 0.5)


def test_the_denominator_is_the_expected_cohort_not_the_realised_one() -> None:
    vector = np.zeros(SIZE)
    vector[0] = 1.0
    one, two = release([vector]), release([vector, vector])
    assert two[0] - one[0] == pytest.approx(1 / 50, rel=1e-4)


def test_the_plain_mean_is_uniform_and_nothing_where_nobody_answered() -> None:
    mean = UniformMean(2)
    assert mean.release() is None
    for value in (1.0, 2.0, 6.0):
        mean.add(np.full(2, value, dtype=np.float32))
    found = mean.release()
    assert found is not None
    assert np.allclose(found.vector, 3.0)
    with pytest.raises(SchemaMismatch):
        mean.add(np.zeros(3, dtype=np.float32))


def test_rounds_have_independent_noise() -> None:
    """Correlation of 4,000 pairs; false alarm 0.01 %."""
    first, second = release([], seed=1), release([], seed=2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 3.9 / np.sqrt(SIZE)
