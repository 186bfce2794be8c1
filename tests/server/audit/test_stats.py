"""The statistics of the audits against scipy, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, spatial
from scipy import stats as reference

from server.audit import stats
from shared.errors import InvalidValue, TooFewCanaries

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


def test_auc_is_the_ordinary_one_and_not_that_of_the_convex_hull() -> None:
    members, others = np.array([0.0, 4, 6, 7]), np.array([1.0, 2, 3, 5])
    assert stats.auc(members, others) == pytest.approx(11 / 16)


@given(members=SCORES, others=SCORES)
def test_auc_equals_scipys_u_statistic(members: list[float], others: list[float]) -> None:
    u = reference.mannwhitneyu(members, others).statistic
    found = stats.auc(np.array(members), np.array(others))
    assert found == pytest.approx(float(u) / (len(members) * len(others)))


def test_auc_refuses_an_empty_side() -> None:
    with pytest.raises(TooFewCanaries):
        stats.auc(np.array([1.0]), np.array([]))


@given(members=SCORES, others=SCORES)
def test_the_interval_holds_the_auc(members: list[float], others: list[float]) -> None:
    if min(len(members), len(others)) < 2:
        with pytest.raises(TooFewCanaries):
            stats.auc_interval(np.array(members), np.array(others))
        return
    low, high = stats.auc_interval(np.array(members), np.array(others))
    value = stats.auc(np.array(members), np.array(others))
    assert 0 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1


def test_perfect_separation_does_not_give_a_point() -> None:
    members, others = np.arange(10.0) + 100, np.arange(10.0)
    low, high = stats.auc_interval(members, others)
    assert high == 1.0
    assert 0.6 < low < 0.95
    assert stats.auc_interval(others, members) == pytest.approx((1 - high, 1 - low))


@pytest.mark.statistical
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_interval_coverage(shift: float) -> None:
    """Covers the true AUC in 95 % of 400 draws; 361 or fewer hits have probability 0.0009."""
    truth = float(reference.norm.cdf(shift / math.sqrt(2)))
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(400):
        low, high = stats.auc_interval(rng.normal(shift, 1, 60), rng.normal(0, 1, 60))
        hits += low <= truth <= high
    assert hits > 361


def test_tpr_needs_ten_times_the_reciprocal_of_the_rate() -> None:
    members = np.arange(100.0)
    assert stats.tpr_at_fpr(members, np.arange(999.0), fpr=0.01).value is None
    assert stats.tpr_at_fpr(members, np.arange(1000.0), fpr=0.01).value is not None
    refused = stats.tpr_at_fpr(members, np.arange(99.0), fpr=0.1)
    assert (refused.value, refused.interval) == (None, None)
    assert "100" in refused.reason
    assert refused.to_dict()["reason"] == refused.reason


def test_tpr_counts_members_above_the_allowed_false_accusations() -> None:
    others = np.arange(100.0)  # 10 % false accusations are the ten scores from 90 on
    members = np.array([89.0, 89.5, 90.0, 95.0, 200.0])
    found = stats.tpr_at_fpr(members, others, fpr=0.1)
    assert found.value == pytest.approx(4 / 5)
    assert found.interval == pytest.approx(stats.clopper_pearson(4, 5))


def test_tpr_does_not_accuse_more_than_allowed_when_scores_tie() -> None:
    others = np.zeros(100)
    assert stats.tpr_at_fpr(np.zeros(10), others, fpr=0.1).value == 0.0
    assert stats.tpr_at_fpr(np.ones(10), others, fpr=0.1).value == 1.0


@given(trials=st.integers(1, 400), data=st.data(), alpha=st.sampled_from([0.01, 0.05, 0.3]))
def test_clopper_pearson_equals_scipys(trials: int, data: st.DataObject, alpha: float) -> None:
    successes = data.draw(st.integers(0, trials))
    exact = reference.binomtest(successes, trials).proportion_ci(1 - alpha, method="exact")
    found = stats.clopper_pearson(successes, trials, alpha=alpha)
    assert found == pytest.approx((float(exact.low), float(exact.high)), abs=1e-9)


def test_clopper_pearson_gives_the_published_ratio_bound() -> None:
    """500 of 500 and 0 of 500 at alpha 0.01 certify 4.54 (TF-privacy's RatioBound)."""
    low, _ = stats.clopper_pearson(500, 500, alpha=0.01)
    _, high = stats.clopper_pearson(0, 500, alpha=0.01)
    assert math.log(low / high) == pytest.approx(4.54, abs=5e-3)


@pytest.mark.parametrize(("m", "epsilon"), [(20, 0.81), (100, 2.57), (1000, 4.91), (10_000, 7.21)])
def test_clopper_pearson_ceilings(m: int, epsilon: float) -> None:
    low, _ = stats.clopper_pearson(m // 2, m // 2)
    _, high = stats.clopper_pearson(0, m // 2)
    assert math.log((low - 1e-5) / high) == pytest.approx(epsilon, abs=6e-3)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_clopper_pearson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(InvalidValue):
        stats.clopper_pearson(successes, trials)


@pytest.mark.statistical
def test_permutation_p_value_agrees_with_the_exact_test() -> None:
    """Five standard errors of 9999 permutations at p = 0.15: false alarm below 1e-6."""
    members, others = np.array([2.0, 5, 6, 8, 9]), np.array([1.0, 3, 4, 7, 7.5, 0])
    exact = reference.mannwhitneyu(members, others, alternative="greater", method="exact").pvalue
    found = stats.permutation_p_value(members, others, seed=0)
    assert found == pytest.approx(float(exact), abs=5 * math.sqrt(0.15 * 0.85 / 9999))


def test_permutation_p_value_is_repeatable_and_never_zero() -> None:
    members, others = np.arange(50.0) + 100, np.arange(50.0)
    found = stats.permutation_p_value(members, others, seed=3)
    assert found == 1 / (stats.PERMUTATIONS + 1)
    assert found == stats.permutation_p_value(members, others, seed=3)
    assert stats.permutation_p_value(np.ones(9), np.ones(9), seed=0) == 1.0
    with pytest.raises(TooFewCanaries):
        stats.permutation_p_value(np.array([]), others, seed=0)


def test_roc_runs_from_corner_to_corner_and_encloses_the_auc() -> None:
    rng = np.random.default_rng(5)
    members, others = rng.normal(1, 1, 40).round(1), rng.normal(0, 1, 60).round(1)
    fpr, tpr = stats.roc(members, others)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(tpr, fpr) == pytest.approx(stats.auc(members, others))


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (0.5, 1e-3), (3.0, 1e-5), (1.0, 0.2)])
def test_largest_auc_is_the_area_above_the_trade_off_function(epsilon: float, delta: float) -> None:
    def missed(fpr: float) -> float:
        return max(
            0.0,
            1 - delta - math.exp(epsilon) * fpr,
            math.exp(-epsilon) * (1 - delta - fpr),
        )

    area, _ = integrate.quad(missed, 0, 1, limit=500)
    assert stats.largest_auc(epsilon, delta) == pytest.approx(1 - area, abs=1e-5)


def test_bootstrap_mean_is_repeatable_and_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(2).exponential(1.44, 400)
    low, high = stats.bootstrap_mean(values, seed=1)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert (low, high) == stats.bootstrap_mean(values, seed=1)
    with pytest.raises(TooFewCanaries):
        stats.bootstrap_mean(np.array([]), seed=1)


def test_the_hull_auc_is_the_published_one_and_named_apart() -> None:
    """13/16 in the tests of jax_privacy, where the ordinary AUC of the same scores is 11/16."""
    members, others = np.array([0.0, 4, 6, 7]), np.array([1.0, 2, 3, 5])
    assert stats.hull_auc(members, others) == pytest.approx(13 / 16)
    fpr, tpr = stats.roc_hull(members, others)
    assert (fpr * 4).tolist() == [0, 0, 1, 4]
    assert (tpr * 4).tolist() == [0, 2, 3, 4]


@given(members=SCORES, others=SCORES)
def test_the_hull_is_scipys_hull(members: list[float], others: list[float]) -> None:
    inside, outside = np.array(members), np.array(others)
    found = stats.hull_auc(inside, outside)
    fpr, tpr = stats.roc(inside, outside)
    # The hull of the curve and of the corner below it; that corner adds no area above the curve.
    cloud = np.column_stack([np.append(fpr, 1.0), np.append(tpr, 0.0)])
    assert found == pytest.approx(spatial.ConvexHull(cloud).volume, abs=1e-9)
    assert found >= max(0.5, stats.auc(inside, outside)) - 1e-12


@given(
    trials=st.integers(1, 300),
    data=st.data(),
    probability=st.sampled_from([0.01, 0.2, 0.5, 0.9]),
)
def test_binomial_p_values_are_scipys_tails(
    trials: int, data: st.DataObject, probability: float
) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = {
        side: float(reference.binomtest(successes, trials, probability, alternative=side).pvalue)
        for side in ("greater", "less")
    }
    for side, p_value in expected.items():
        found = stats.binomial_p_value(
            successes,
            trials,
            probability=probability,
            alternative=side,  # type: ignore[arg-type]
        )
        assert found == pytest.approx(p_value, rel=1e-9, abs=1e-300)
    both = stats.binomial_p_value(successes, trials, probability=probability)
    assert both == pytest.approx(min(1.0, 2 * min(expected.values())), rel=1e-9, abs=1e-300)


def test_the_two_sided_binomial_test_goes_with_the_interval() -> None:
    for successes in range(31):
        low, high = stats.clopper_pearson(successes, 30)
        p_value = stats.binomial_p_value(successes, 30, probability=0.3)
        assert (p_value < 0.05) == (not low <= 0.3 <= high)


@pytest.mark.parametrize(
    ("successes", "trials", "probability"), [(-1, 3, 0.5), (4, 3, 0.5), (0, 0, 0.5), (1, 3, 0.0)]
)
def test_binomial_tests_refuse_what_cannot_be(
    successes: int, trials: int, probability: float
) -> None:
    with pytest.raises(InvalidValue):
        stats.binomial_p_value(successes, trials, probability=probability)


P_VALUES = st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=12)


@given(P_VALUES)
def test_fishers_combination_is_scipys(p_values: list[float]) -> None:
    expected = float(reference.combine_pvalues(p_values, method="fisher").pvalue)
    assert stats.fisher_p_value(p_values) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_fisher_of_exposures_is_the_chi_square_of_twice_their_bits() -> None:
    """-2 sum ln 2^-bits = 2 ln 2 sum bits, with two degrees of freedom for each canary."""
    bits = np.array([3.0, 0.5, 6.25])
    expected = float(reference.chi2.sf(2 * math.log(2) * bits.sum(), 6))
    assert stats.fisher_p_value(2.0**-bits) == pytest.approx(expected, rel=1e-12)


@given(P_VALUES)
def test_corrections_keep_their_promises(p_values: list[float]) -> None:
    found = np.array(p_values)
    all_at_once, stepwise = stats.bonferroni(p_values), stats.holm(p_values)
    assert (stepwise <= all_at_once).all()
    assert (stepwise >= found).all()
    assert stepwise.max() <= 1.0
    for level in (0.01, 0.05, 0.5):
        assert (all_at_once <= level).sum() <= (stepwise <= level).sum() <= (found <= level).sum()
        assert set(np.flatnonzero(stepwise <= level)) == _holm_by_hand(p_values, level)


def _holm_by_hand(p_values: list[float], level: float) -> set[int]:
    """Holm (1979) as it was written: reject from the smallest on until one is too large."""
    rejected: set[int] = set()
    for step, index in enumerate(np.argsort(p_values, kind="stable")):
        if not p_values[index] * (len(p_values) - step) <= level:
            break
        rejected.add(int(index))
    return rejected


def test_a_known_holm_correction() -> None:
    """0.005 * 4, 0.01 * 3, then 0.03 * 2, which 0.04 * 1 may not undercut."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.bonferroni([0.01, 0.4]) == pytest.approx([0.02, 0.8])


@pytest.mark.parametrize("bad", [[], [0.0], [1.1], [math.nan], [[0.5]]])
def test_what_is_not_a_p_value_is_refused(bad: list[float]) -> None:
    for combine in (stats.fisher_p_value, stats.bonferroni, stats.holm):
        with pytest.raises(InvalidValue):
            combine(bad)
