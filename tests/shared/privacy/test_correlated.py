"""Correlated noise: the factorisation, its exact sensitivity, and rows that repeat."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidValue, SchemaMismatch, SensitivityError
from shared.privacy.correlated import CorrelatedGaussian, CorrelatedNoise, CorrelatedTerms
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.mechanism import AdapterDelta, ClippedSum, GaussianMechanism, clip_update
from shared.privacy.noiserows import NoiseRows

Matrix = npt.NDArray[np.float64]


def terms(bands: int, separation: int, rounds: int) -> CorrelatedTerms:
    return CorrelatedTerms(bands=bands, min_separation=separation, rounds=rounds)


def dense(bands: int, rounds: int) -> Matrix:
    """Build C from exact binomials, apart from the code's recursion."""
    c = np.zeros((rounds, rounds))
    for i, j in itertools.product(range(rounds), repeat=2):
        if 0 <= i - j < bands:
            c[i, j] = math.comb(2 * (i - j), i - j) / 4 ** (i - j)
    return c


def patterns(separation: int, rounds: int) -> list[list[int]]:
    """List every set of rounds that lie at least ``separation`` apart."""
    found: list[list[int]] = [[]]
    for number in range(rounds):
        found += [[*p, number] for p in found if not p or number - p[-1] >= separation]
    return found


def summed(value: float = 0.0, dimension: int = 6, clip: float = 1.0) -> ClippedSum:
    total = ClippedSum(dimension=dimension, clipping_norm=clip)
    vector = np.full(dimension, value, dtype=np.float32)
    total.add(clip_update(AdapterDelta(vector=vector), clipping_norm=clip))
    return total


def noise_of(
    of: CorrelatedTerms, *, dimension: int = 6, seed: int = 3, used: int = 0
) -> CorrelatedNoise:
    rows = NoiseRows.seeded(seed)
    return CorrelatedNoise(of, dimension=dimension, rows=rows, used=used)


@pytest.mark.parametrize("rounds", [1, 2, 7, 40])
def test_the_full_root_squares_to_prefix_sums(rounds: int) -> None:
    """B C = A with B = A C^-1, and C itself is the root: C C = A."""
    root = dense(rounds, rounds)
    sums = np.tril(np.ones((rounds, rounds)))
    np.testing.assert_allclose(root @ root, sums, atol=1e-12)
    np.testing.assert_allclose((sums @ np.linalg.inv(root)) @ root, sums, atol=1e-12)
    np.testing.assert_allclose(terms(rounds, 1, rounds).coefficients, root[:, 0], rtol=1e-14)


@pytest.mark.parametrize(("bands", "rounds"), [(1, 5), (3, 8), (8, 8), (20, 8)])
def test_the_coefficients_are_a_band_of_the_root(bands: int, rounds: int) -> None:
    found = terms(bands, 1, rounds).coefficients
    np.testing.assert_allclose(found, dense(bands, rounds)[: min(bands, rounds), 0], rtol=1e-14)


@pytest.mark.parametrize("bands", range(1, 9))
@pytest.mark.parametrize("rounds", [1, 2, 5, 8])
def test_sensitivity_is_the_worst_of_all_patterns_and_signs(bands: int, rounds: int) -> None:
    """Brute force: every participation pattern, every choice of +1 and -1 on it."""
    c = dense(bands, rounds)
    for separation in range(1, rounds + 2):
        worst = 0.0
        for pattern in patterns(separation, rounds):
            for signs in itertools.product((-1.0, 1.0), repeat=len(pattern)):
                worst = max(worst, float(np.linalg.norm(c[:, pattern] @ np.array(signs))))
        assert terms(bands, separation, rounds).sensitivity == pytest.approx(worst, rel=1e-12)


@given(
    bands=st.integers(1, 8),
    separation=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_no_vectors_go_beyond_it(bands: int, separation: int, seed: int) -> None:
    """Unit vectors in any direction, and shorter ones, on any pattern of eight rounds."""
    rng = np.random.default_rng(seed)
    allowed = patterns(separation, 8)
    moved = np.zeros((8, 3))
    for number in allowed[rng.integers(len(allowed))]:
        vector = rng.standard_normal(3)
        moved[number] = vector / np.linalg.norm(vector) * rng.choice([1.0, rng.uniform()])
    distance = np.linalg.norm(dense(bands, 8) @ moved)
    assert distance <= terms(bands, separation, 8).sensitivity * (1 + 1e-12)


@pytest.mark.parametrize(("bands", "separation", "rounds"), [(4, 5, 19), (5, 5, 20), (1, 3, 7)])
def test_disjoint_columns_give_the_closed_form(bands: int, separation: int, rounds: int) -> None:
    found = terms(bands, separation, rounds)
    norm = math.sqrt(sum((math.comb(2 * k, k) / 4**k) ** 2 for k in range(bands)))
    turns = math.ceil(rounds / separation)
    assert found.max_participations == turns
    assert found.sensitivity == pytest.approx(math.sqrt(turns) * norm, rel=1e-12)


@pytest.mark.parametrize(("bands", "rounds"), [(1, 6), (2, 9), (4, 30), (30, 30), (50, 30)])
def test_rows_are_the_dense_inverse_times_independent_rows(bands: int, rounds: int) -> None:
    """Oracle: numpy's inverse of the dense matrix."""
    dimension = 11
    noise = noise_of(terms(bands, 2, rounds), dimension=dimension)
    streamed = np.stack([noise.row(number) for number in range(1, rounds + 1)])
    rows = NoiseRows.seeded(3)
    z = np.stack([rows.source(number).normal(dimension) for number in range(1, rounds + 1)])
    inverse = np.linalg.inv(dense(bands, rounds))
    np.testing.assert_allclose(streamed, inverse @ z, atol=1e-10)
    column = terms(bands, 2, rounds).inverse(rounds)
    np.testing.assert_allclose(column, inverse[:, 0], atol=1e-12)
    mechanism = CorrelatedGaussian(
        noise_multiplier=2.0, clipping_norm=0.5, terms=terms(bands, 2, rounds)
    )
    for number in (1, rounds):
        exact = 2.0 * 0.5 * mechanism.terms.sensitivity * np.linalg.norm(inverse[number - 1])
        assert mechanism.noise_stddev(number) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("bands", [1, 3, 9])
def test_a_resumed_run_continues_the_same_matrix(bands: int) -> None:
    of = terms(bands, 2, 9)
    whole = noise_of(of)
    expected = [whole.row(number) for number in range(1, 10)]
    resumed = noise_of(of, used=5)
    for number in range(6, 10):
        np.testing.assert_array_equal(resumed.row(number), expected[number - 1])


def test_a_row_comes_out_once() -> None:
    noise = noise_of(terms(2, 2, 4), used=1)
    for wrong in (1, 5):
        with pytest.raises(SensitivityError, match="expected 2 to 4"):
            noise.row(wrong)
    first = noise.row(2)
    first[:] = 0.0
    with pytest.raises(SensitivityError, match="expected 3 to 4"):
        noise.row(2)
    assert np.abs(noise.row(3)).max() > 0
    with pytest.raises(InvalidValue):
        noise.row(0)
    with pytest.raises(InvalidValue):
        noise_of(terms(2, 2, 4), used=-1)
    with pytest.raises(InvalidValue):
        noise_of(terms(2, 2, 4), dimension=0)


def test_one_band_and_one_turn_is_the_independent_gaussian() -> None:
    """Same noise, same event, same sensitivity as the mechanism without correlation."""
    plain = GaussianMechanism(noise_multiplier=1.3, clipping_norm=0.7)
    one = CorrelatedGaussian(noise_multiplier=1.3, clipping_norm=0.7, terms=terms(1, 5, 5))
    assert one.terms.sensitivity == 1.0
    assert one.row_stddev == plain.noise_stddev
    assert [one.noise_stddev(number) for number in (1, 5)] == [plain.noise_stddev] * 2
    assert one.event == plain.event
    for relation in NeighboringRelation:
        assert one.sensitivity(relation) == plain.sensitivity(relation)
    rows = NoiseRows.seeded(3)
    noise = CorrelatedNoise(one.terms, dimension=6, rows=rows)
    for number in range(1, 6):
        left = one.release(
            summed(0.1, clip=0.7), expected_count=4.0, server_round=number, noise=noise
        )
        right = plain.release(summed(0.1, clip=0.7), expected_count=4.0, source=rows.source(number))
        np.testing.assert_array_equal(left.vector, right.vector)
        assert left.noise_stddev == right.noise_stddev


def test_one_band_over_several_turns_costs_the_composition() -> None:
    """k independent Gaussians of multiplier z sqrt(k) are one of multiplier z."""
    found = CorrelatedGaussian(noise_multiplier=1.0, clipping_norm=1.0, terms=terms(1, 2, 8))
    assert found.row_stddev == pytest.approx(math.sqrt(4))


def test_the_release_is_the_sum_plus_its_row() -> None:
    of = terms(3, 4, 8)
    mechanism = CorrelatedGaussian(noise_multiplier=1.5, clipping_norm=2.0, terms=of)
    noise, twin = noise_of(of), noise_of(of)
    for number in (1, 2, 7):
        found = mechanism.release(
            summed(0.25, clip=2.0), expected_count=5.0, server_round=number, noise=noise
        )
        expected = (0.25 + 1.5 * 2.0 * of.sensitivity * twin.row(number)) / 5.0
        np.testing.assert_allclose(found.vector, expected, rtol=1e-5)
        assert found.event == GaussianEvent(noise_multiplier=1.5)
        assert found.noise_source == noise.kind == "seeded-simulation"
        assert found.noise_stddev == mechanism.noise_stddev(number) / 5.0


def test_a_wrong_sum_or_wrong_rows_are_refused() -> None:
    of = terms(3, 4, 8)
    mechanism = CorrelatedGaussian(noise_multiplier=1.0, clipping_norm=1.0, terms=of)

    def release(total: ClippedSum, noise: CorrelatedNoise, count: float = 1.0) -> None:
        mechanism.release(total, expected_count=count, server_round=1, noise=noise)

    with pytest.raises(SensitivityError, match="bound"):
        release(summed(clip=2.0), noise_of(of))
    with pytest.raises(SensitivityError, match="other terms"):
        release(summed(), noise_of(terms(2, 4, 8)))
    with pytest.raises(SensitivityError, match="another dimension"):
        release(summed(), noise_of(of, dimension=7))
    with pytest.raises(InvalidValue):
        release(summed(), noise_of(of), count=0.0)
    total, noise = summed(), noise_of(of)
    release(total, noise)
    with pytest.raises(SensitivityError, match="already released"):
        release(total, noise)


def test_replace_one_doubles_the_shift_and_not_the_noise() -> None:
    mechanism = CorrelatedGaussian(noise_multiplier=1.0, clipping_norm=2.0, terms=terms(2, 2, 4))
    once = mechanism.sensitivity(NeighboringRelation.ADD_OR_REMOVE_ONE)
    assert once == mechanism.row_stddev
    assert mechanism.sensitivity(NeighboringRelation.REPLACE_ONE) == 2 * once


def test_the_stored_form() -> None:
    whole = terms(3, 4, 8)
    assert CorrelatedTerms.from_json(whole.to_json()) == whole
    for broken in (None, {}, {**whole.to_json(), "more": 1}):
        with pytest.raises(SchemaMismatch):
            CorrelatedTerms.from_json(broken)


@pytest.mark.parametrize("name", ["bands", "min_separation", "rounds"])
@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_values_out_of_range_are_refused(name: str, bad: float) -> None:
    with pytest.raises(InvalidValue):
        CorrelatedTerms.from_json({**terms(3, 4, 8).to_json(), name: bad})
    with pytest.raises(InvalidValue):
        terms(3, 4, 8).inverse(0)


@pytest.mark.parametrize("bad", [{"noise_multiplier": 0.0}, {"clipping_norm": math.nan}])
def test_a_mechanism_out_of_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidValue):
        CorrelatedGaussian(
            **{"noise_multiplier": 1.0, "clipping_norm": 1.0, **bad}, terms=terms(1, 1, 1)
        )
