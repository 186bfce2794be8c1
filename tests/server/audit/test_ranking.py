"""Ranks, exposures and p-values: known answers, whole spaces, and their null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit.ranking import (
    CHANCE_BITS,
    MIN_BLOCK,
    block_p_values,
    exposure,
    exposure_in_space,
    extrapolated,
    fisher,
    mean_permutation_p_value,
)
from shared.errors import InvalidValue, TooFewCanaries


def test_known_answers_in_the_convention_of_the_secret_sharer() -> None:
    references = np.arange(1.0, 17.0)
    found = exposure(np.array([0.0, 3.5, 20.0]), references, space=16)
    assert found == pytest.approx([4.0, 2.0, math.log2(16 / 17)])


def test_ties_count_against_the_canary() -> None:
    references = np.array([1.0, 1.0, 2.0])
    assert exposure(np.array([1.0]), references)[0] == pytest.approx(math.log2(4 / 3))
    assert exposure(np.array([0.5]), references)[0] == pytest.approx(2.0)
    space = np.array([1.0, 1.0, 2.0, 3.0])
    assert exposure_in_space(np.array([1.0, 3.0]), space) == pytest.approx([1.0, 0.0])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.floats(-20, 20))
def test_exposure_lies_between_zero_and_its_ceiling(refs: list[float], loss: float) -> None:
    found = float(exposure(np.array([loss]), np.array(refs))[0])
    assert 0 <= found <= math.log2(len(refs) + 1) + 1e-12


def test_references_and_spaces_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidValue, match="references=0"):
        exposure(np.array([1.0]), np.array([]))
    with pytest.raises(InvalidValue, match="space=9"):
        exposure(np.array([1.0]), np.arange(10.0), space=9)
    with pytest.raises(InvalidValue, match="space=3"):
        exposure_in_space(np.array([0.5]), np.arange(3.0))


@pytest.mark.statistical
def test_sampling_and_extrapolation_agree_with_a_whole_space_of_a_million_secrets() -> None:
    """Six digits whose losses add up: exact ranks by enumeration against 4,095 sampled references
    and against the curve through them. Mean over the canaries within 0.15 bit; each canary's
    sampled rank has a standard error of at most 0.13 bit at 5 bits and below, so a mean over 200
    strays that far with a chance far below 1e-6.
    """
    rng = np.random.default_rng(5)
    tables = -np.log(rng.dirichlet(np.full(10, 3.0), size=6))
    space = np.array([0.0])
    for table in tables:
        space = np.add.outer(space, table).ravel()
    assert space.size == 10**6
    order = np.sort(space)
    # Canaries at ranks from 1 to 5 bits, as a leak of different strength would place them.
    wanted = rng.uniform(1, 5, size=200)
    canaries = order[(space.size * 2.0**-wanted).astype(int)]
    references = rng.choice(space, size=4095)
    exact = exposure_in_space(canaries, space)
    curve = extrapolated(canaries, references)
    assert curve is not None
    assert exposure(canaries, references).mean() == pytest.approx(exact.mean(), abs=0.15)
    assert curve.mean() == pytest.approx(exact.mean(), abs=0.15)
    assert np.abs(curve - exact).max() < 0.3


def test_enumeration_counts_what_a_loop_counts() -> None:
    letters = {"a": 0.3, "b": 1.1, "c": 2.0}
    losses = {
        word: sum(letters[letter] * weight for letter, weight in zip(word, (1, 2, 5), strict=True))
        for word in itertools.product(letters, repeat=3)
    }
    found = exposure_in_space(np.array([losses["b", "a", "c"]]), np.array(list(losses.values())))
    rank = sum(loss <= losses["b", "a", "c"] for loss in losses.values())
    assert found[0] == pytest.approx(math.log2(27) - math.log2(rank))


def test_no_curve_without_enough_or_with_equal_references() -> None:
    assert extrapolated(np.array([1.0]), np.arange(5.0)) is None
    assert extrapolated(np.array([1.0]), np.full(100, 2.0)) is None
    far = extrapolated(np.array([-1e3]), np.random.default_rng(0).standard_normal(500))
    assert far is not None
    assert far[0] == 64.0


@pytest.mark.statistical
def test_null_is_uniform_with_a_mean_of_one_point_four_bits() -> None:
    """2000 canaries, references of their own: mean within 5 standard errors (p < 1e-6), and the
    Kolmogorov-Smirnov test of 2^-exposure against uniform at p > 0.001.
    """
    rng = np.random.default_rng(1)
    bits = np.array(
        [exposure(rng.standard_normal(1), rng.standard_normal(4095))[0] for _ in range(2000)]
    )
    assert bits.mean() == pytest.approx(CHANCE_BITS, abs=5 * 1.4427 / math.sqrt(2000))
    assert reference.kstest(2.0**-bits, "uniform").pvalue > 0.001


def test_fisher_agrees_with_scipy_and_with_the_sum_of_exposures() -> None:
    p_values = np.array([0.5, 0.02, 0.7, 0.9, 0.11])
    expected = reference.combine_pvalues(p_values, method="fisher").pvalue
    assert fisher(p_values) == pytest.approx(float(expected), rel=1e-12)
    # -2 sum ln p is 2 ln 2 times the sum of exposures, here 3 bits in all.
    assert fisher(np.array([0.5, 0.25])) == pytest.approx(reference.chi2.sf(6 * math.log(2), 4))
    for bad in (np.array([]), np.array([0.0]), np.array([1.5])):
        with pytest.raises(InvalidValue):
            fisher(bad)


def test_blocks_are_disjoint_and_as_large_as_they_can_be() -> None:
    """With all references equal and canaries on either side, p-values are the extremes."""
    found = block_p_values(np.array([0.0, 2.0, 0.0]), np.full(3 * MIN_BLOCK + 2, 1.0), seed=1)
    assert found == pytest.approx([1 / 9, 1.0, 1 / 9])
    assert block_p_values(np.zeros(3), np.ones(3 * MIN_BLOCK - 1), seed=1) is None
    assert block_p_values(np.array([]), np.ones(99), seed=1) is None


@pytest.mark.statistical
def test_fisher_on_blocks_keeps_its_level_where_shared_references_do_not() -> None:
    """1,000 nulls at level 0.05, with blocks of 16 references for each of 32 canaries, and with 512
    canaries among the same 512 references. At most 73 alarms with blocks (99.9 % quantile of
    Bin(1000, 0.05)); more than that among shared references, so the dependence is real.
    """
    rng = np.random.default_rng(11)
    apart = shared = 0
    for seed in range(1000):
        canaries, references = rng.standard_normal(512), rng.standard_normal(512)
        blocks = block_p_values(canaries[:32], references, seed=seed)
        assert blocks is not None
        apart += fisher(blocks) < 0.05
        shared += fisher(2.0 ** -exposure(canaries, references)) < 0.05
    assert apart <= 73
    assert shared > 73


def test_the_permutation_test_agrees_with_all_permutations() -> None:
    """Four against three: 35 ways to choose, counted one by one."""
    included, held_out = np.array([3.0, 1.5, 2.5, 0.5]), np.array([1.0, 0.5, 2.0])
    both = np.concatenate([included, held_out])
    sums = [sum(chosen) for chosen in itertools.combinations(both, 4)]
    exact = np.mean([total >= included.sum() - 1e-9 for total in sums])
    found = mean_permutation_p_value(included, held_out, seed=0, permutations=40_000)
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 40_000))


def test_the_permutation_test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(4)
    included, held_out = rng.exponential(1.9, 20), rng.exponential(1.44, 25)
    expected = reference.permutation_test(
        (included, held_out),
        lambda x, y: np.mean(x) - np.mean(y),
        alternative="greater",
        n_resamples=9_999,
        rng=np.random.default_rng(1),
    ).pvalue
    found = mean_permutation_p_value(included, held_out, seed=2)
    assert found == pytest.approx(float(expected), abs=0.02)


def test_the_permutation_test_is_never_zero_and_needs_both_sides() -> None:
    assert mean_permutation_p_value(np.full(20, 9.0), np.zeros(20), seed=0) == pytest.approx(1e-4)
    assert mean_permutation_p_value(np.zeros(5), np.zeros(5), seed=0) == 1.0
    with pytest.raises(TooFewCanaries):
        mean_permutation_p_value(np.array([]), np.zeros(5), seed=0)
