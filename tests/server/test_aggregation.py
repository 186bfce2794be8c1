"""Aggregation: bounded whoever lies, uniform whoever counts, noised whoever is missing."""

from __future__ import annotations

import stat
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.aggregation import (
    LONGEST_UPDATE,
    Aggregator,
    CorrelatedCentral,
    QuantileCentral,
    UniformMean,
    correlated_noise,
    make_aggregator,
)
from server.cohort import cyclic_cohort
from shared.errors import ConflictingSettings, NotResumable, SchemaMismatch, SensitivityError
from shared.privacy.noise import NoiseSource
from shared.privacy.noiserows import KEY_NAME, forget_rows
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping

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


@pytest.mark.parametrize("case", ["none", "fixed clip", "moving clip", "correlated"])
def test_memory_is_independent_of_the_cohort(case: str, tmp_path: Path) -> None:
    """After the sum is there, an update costs one block: less than a copy of it in float64."""
    size = 400_000
    of = {"fixed clip": plan(), "moving clip": adaptive(), "correlated": correlated()}.get(case)
    aggregator: Aggregator = UniformMean(size)
    if of is not None:
        noise = correlated_noise(size, plan=of, folder=tmp_path, seed=1, finished=0)
        aggregator = make_aggregator(size, plan=of, source=NoiseSource.seeded(0), noise=noise)
    vector = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    expected = float(np.linalg.norm(vector.astype(np.float64)))
    tracemalloc.start()
    try:
        for _ in range(20):
            assert aggregator.add(vector) == pytest.approx(expected, rel=1e-12)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * size / 2
    assert now < 10_000


def test_the_plain_mean_adds_bit_for_bit_and_bounds_what_is_absurd() -> None:
    """Oracle: whole vectors in float64."""
    rng = np.random.default_rng(5)
    vectors = [rng.standard_normal(SIZE, dtype=np.float32) for _ in range(4)]
    mean, expected = UniformMean(SIZE), np.zeros(SIZE)
    for vector in vectors:
        mean.add(vector)
        expected += vector
    found = mean.release()
    assert found is not None
    np.testing.assert_array_equal(found.vector, expected / 4)
    absurd = UniformMean(2)
    assert absurd.add(np.array([3e30, 4e30], dtype=np.float32)) == pytest.approx(5e30, rel=1e-6)
    bounded = absurd.release()
    assert bounded is not None
    assert bounded.vector == pytest.approx([0.6 * LONGEST_UPDATE, 0.8 * LONGEST_UPDATE], rel=1e-6)


def test_rounds_have_independent_noise() -> None:
    """Correlation of 4,000 pairs; false alarm 0.01 %."""
    first, second = release([], seed=1), release([], seed=2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 3.9 / np.sqrt(SIZE)


QUANTILE = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=1e3, initial=2.0)


def adaptive(noise: float = 1.5, count_noise: float = 5.0) -> PrivacyPlan:
    clipping = replace(QUANTILE, count_noise_stddev=count_noise)
    return replace(plan(), noise_multiplier=noise, quantile=clipping)


def correlated(
    *, rounds: int = 12, separation: int = 4, source: str = "seeded-simulation", noise: float = 1.5
) -> PrivacyPlan:
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=noise,
        clipping_norm=2.0,
        rounds=rounds,
        population=41,
        mechanism="correlated",
        bands=3,
        min_separation=separation,
        noise_source=source,
    )


def test_the_plan_chooses_the_mechanism(tmp_path: Path) -> None:
    source = NoiseSource.seeded(0)
    assert isinstance(make_aggregator(SIZE, plan=adaptive(), source=source), QuantileCentral)
    rows = correlated_noise(SIZE, plan=correlated(), folder=tmp_path, seed=1, finished=0)
    found = make_aggregator(SIZE, plan=correlated(), source=source, noise=rows)
    assert isinstance(found, CorrelatedCentral)
    assert correlated_noise(SIZE, plan=plan(), folder=tmp_path, seed=1, finished=0) is None
    with pytest.raises(ConflictingSettings, match="without the rows"):
        make_aggregator(SIZE, plan=correlated(), source=source)
    with pytest.raises(ConflictingSettings, match="without quantile"):
        QuantileCentral(SIZE, plan=plan(), source=source, clip=1.0)
    assert rows is not None
    with pytest.raises(ConflictingSettings, match="without correlated"):
        CorrelatedCentral(SIZE, plan=plan(), server_round=1, noise=rows)


def test_quantile_noise_and_clip() -> None:
    """Noise of the update: chi-square, false alarm 0.1 %; the clip grows when all are cut."""
    aggregator = make_aggregator(
        SIZE, plan=adaptive(count_noise=1.0), source=NoiseSource.seeded(4), clip=3.0
    )
    empty = aggregator.release()
    assert empty is not None
    expected = 3.0 / np.sqrt(1.5**-2 - 0.5**2) / 50
    low, high = stats.chi2.ppf([0.0005, 0.9995], SIZE) / SIZE
    assert low <= np.mean((empty.vector / expected) ** 2) <= high
    aggregator = make_aggregator(
        SIZE, plan=adaptive(noise=1e-6, count_noise=1e-5), source=NoiseSource.seeded(5)
    )
    for _ in range(50):
        aggregator.add(np.full(SIZE, 7.0, dtype=np.float32))
    cut = aggregator.release()
    assert cut is not None
    assert cut.count == 50
    assert cut.next_clip == pytest.approx(2.0 * np.exp(0.2 * 0.5), rel=1e-6)
    assert np.linalg.norm(cut.vector) == pytest.approx(2.0, rel=1e-3)


def run(
    of: PrivacyPlan, folder: Path, *, stop: int = 12, finished: int = 0, value: float = 0.0
) -> list[np.ndarray]:
    """Release rounds with cyclic cohorts in which every client sends the same update."""
    noise = correlated_noise(SIZE, plan=of, folder=folder, seed=3, finished=finished)
    assert of.correlated is not None
    released = []
    for number in range(finished + 1, stop + 1):
        aggregator = make_aggregator(
            SIZE, plan=of, source=NoiseSource.seeded(0), server_round=number, noise=noise
        )
        cohort = cyclic_cohort(of.population, of.correlated.min_separation, number, 3)
        for _ in cohort:
            aggregator.add(np.full(SIZE, value, dtype=np.float32))
        found = aggregator.release()
        assert found is not None
        assert found.count == len(cohort) <= of.expected_cohort == 11.0
        assert found.next_clip is None
        released.append(found.vector)
    return released


@pytest.mark.parametrize("kind", ["seeded-simulation", "os-entropy"])
def test_a_resumed_run_releases_the_same_rounds(tmp_path: Path, kind: str) -> None:
    of = correlated(source=kind)
    whole = run(of, tmp_path)
    for left, right in zip(whole[5:], run(of, tmp_path, finished=5), strict=True):
        np.testing.assert_array_equal(left, right)
    key = tmp_path / KEY_NAME
    assert key.exists() == (kind == "os-entropy")
    if kind == "os-entropy":
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        forget_rows(tmp_path)
        with pytest.raises(NotResumable):
            run(of, tmp_path, finished=5)


def test_a_released_round_is_not_released_again(tmp_path: Path) -> None:
    of = correlated()
    noise = correlated_noise(SIZE, plan=of, folder=tmp_path, seed=3, finished=2)
    source = NoiseSource.seeded(0)
    aggregator = make_aggregator(SIZE, plan=of, source=source, server_round=2, noise=noise)
    with pytest.raises(SensitivityError, match="expected 3 to 12"):
        aggregator.release()


def test_the_noise_of_prefix_sums_is_below_that_of_independent_rounds(tmp_path: Path) -> None:
    """Same guarantee, three turns a client: sums over 12 rounds carry less noise.

    Oracle: the variance of ``A C^-1 Z`` from numpy's dense inverse, chi-square, alarm 0.1 %.
    """
    of = correlated()
    total = np.sum(run(of, tmp_path), axis=0) * 11.0
    assert of.correlated is not None
    column = np.array([1.0, 0.5, 0.375])
    c = sum(column[k] * np.eye(12, k=-k) for k in range(3))
    last = np.linalg.inv(c).sum(axis=0)
    sensitivity = np.sqrt(3 * np.sum(column**2))
    expected = 1.5 * 2.0 * sensitivity * np.linalg.norm(last)
    low, high = stats.chi2.ppf([0.0005, 0.9995], SIZE) / SIZE
    assert low <= np.mean((total / expected) ** 2) <= high
    independent = 1.5 * 2.0 * np.sqrt(3) * np.sqrt(12)
    assert expected < 0.8 * independent


def test_correlated_rounds_clip_and_divide_by_the_largest_cohort(tmp_path: Path) -> None:
    quiet, moved = run(correlated(), tmp_path, stop=4), run(correlated(), tmp_path, stop=4, value=9)
    for number, (left, right) in enumerate(zip(moved, quiet, strict=True), start=1):
        size = len(cyclic_cohort(41, 4, number, 3))
        assert np.linalg.norm(left - right) == pytest.approx(2.0 * size / 11, rel=1e-4)


def test_masked_updates_are_never_averaged_as_they_are() -> None:
    plan = make_plan(
        mode="client-distributed",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        sampling_probability=0.5,
        rounds=1,
        population=20,
        honest_fraction=0.9,
        survivor_fraction=0.8,
        min_cohort=5,
    )
    with pytest.raises(ConflictingSettings, match="secure aggregation"):
        make_aggregator(4, plan=plan, source=NoiseSource.seeded(0))


@pytest.mark.parametrize(("server_round", "factor"), [(1, 1.0), (2, 0.625), (3, 0.25)])
def test_each_round_has_the_noise_that_the_schedule_says(server_round: int, factor: float) -> None:
    """An empty cohort releases noise alone; 5 standard errors of its standard deviation, seeded."""
    unequal = replace(plan(), rounds=3, schedule=NoiseSchedule(final=0.25))
    source = NoiseSource.seeded(0, "noise", server_round)
    made = make_aggregator(SIZE, plan=unequal, source=source, server_round=server_round)
    aggregate = made.release()
    assert aggregate is not None
    expected = 1.5 * factor * 2.0 / 50.0
    allowed = 5.0 / np.sqrt(2.0 * SIZE)
    assert np.sqrt(np.mean(aggregate.vector**2)) == pytest.approx(expected, rel=allowed)
