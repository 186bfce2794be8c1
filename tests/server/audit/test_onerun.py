"""The one-run bound: known answers, false alarms, power, and the ways to get it wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit.onerun import (
    OneRun,
    correct_guesses,
    epsilon_lower_bound,
    guesses_per_side,
    p_value,
)
from server.audit.protocol import Floats
from shared.errors import InvalidValue, TooFewCanaries
from tests.server.audit import oracles

ONE_RUN = OneRun()


@pytest.mark.parametrize(
    ("m", "guesses", "correct", "delta", "epsilon"),
    [
        (1000, 100, 90, 1e-5, 1.626143),
        (1000, 500, 300, 1e-5, 0.251205),
        (100, 100, 100, 0.0, 3.492965),
        (5000, 1000, 900, 1e-5, 2.018259),
        (1000, 1000, 500, 1e-5, 0.0),
        (1000, 200, 200, 1e-5, 4.166490),
    ],
)
def test_known_lower_bounds(
    m: int, guesses: int, correct: int, delta: float, epsilon: float
) -> None:
    found = epsilon_lower_bound(m=m, guesses=guesses, correct=correct, delta=delta)
    assert found == pytest.approx(epsilon, abs=1e-6)


def test_known_p_values() -> None:
    counts = {"m": 1000, "guesses": 100, "correct": 90, "delta": 1e-5}
    assert p_value(**counts, epsilon=1.0) == pytest.approx(8.41289e-4, rel=1e-5)  # type: ignore[arg-type]
    assert p_value(**counts, epsilon=2.0) == pytest.approx(0.344987, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("m", "everyone", "half"),
    [
        (20, 1.82, None),
        (50, 2.78, 2.06),
        (100, 3.49, 2.78),
        (200, 4.19, 3.49),
        (500, 5.10, 4.41),
        (1000, 5.78, 5.09),
        (2000, 6.45, 5.76),
        (5000, 7.28, 6.59),
        (10_000, 7.83, 7.14),
    ],
)
def test_known_ceilings(m: int, everyone: float, half: float | None) -> None:
    found = epsilon_lower_bound(m=m, guesses=m, correct=m, delta=1e-5)
    assert found == pytest.approx(everyone, abs=6e-3)
    if half is not None:
        found = epsilon_lower_bound(m=m, guesses=m // 2, correct=m // 2, delta=1e-5)
        assert found == pytest.approx(half, abs=6e-3)


@given(
    guesses=st.integers(1, 60),
    data=st.data(),
    epsilon=st.floats(0, 6),
    delta=st.sampled_from([0.0, 1e-6, 1e-3]),
)
def test_p_value_is_the_formula_term_by_term(
    guesses: int, data: st.DataObject, epsilon: float, delta: float
) -> None:
    correct, m = data.draw(st.integers(0, guesses)), 2 * guesses
    coin = reference.binom(guesses, math.exp(epsilon) / (1 + math.exp(epsilon)))
    beta = float(coin.sf(correct - 1))
    worst = max(
        (float(sum(coin.pmf(range(correct - i, correct)))) / i for i in range(1, correct + 1)),
        default=0.0,
    )
    expected = min(1.0, beta + 2 * m * delta * worst)
    found = p_value(m=m, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(expected, abs=1e-9)


def test_no_right_guess_is_no_evidence() -> None:
    """A published implementation gives p = 0 here, which is a violation out of nothing."""
    assert p_value(m=100, guesses=50, correct=0, epsilon=0.0, delta=1e-5) == 1.0
    assert epsilon_lower_bound(m=100, guesses=50, correct=0, delta=1e-5) == 0.0


@pytest.mark.parametrize(("m", "guesses", "correct"), [(10, 11, 5), (10, 5, 6), (0, 0, 0)])
def test_impossible_counts_are_refused(m: int, guesses: int, correct: int) -> None:
    with pytest.raises(InvalidValue):
        p_value(m=m, guesses=guesses, correct=correct, epsilon=1.0, delta=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_bad_hypotheses_are_refused(bad: float) -> None:
    with pytest.raises(InvalidValue):
        p_value(m=10, guesses=4, correct=2, epsilon=bad, delta=0.0)


def test_the_number_of_guesses_follows_from_m_alone() -> None:
    assert [guesses_per_side(m) for m in (8, 200, 999, 1000, 5000)] == [1, 25, 124, 100, 500]


@pytest.mark.statistical
def test_ties_are_not_broken_in_favour_of_the_guesser() -> None:
    """Equal scores: 400 seeds of 50 guesses are right half the time within 5 standard errors.

    Listing members first and sorting stably would make all of them right. The exact variance is
    below that of fair coins, so the false-alarm rate is below 6e-7.
    """
    same = np.zeros(100)
    right = [correct_guesses(same, same, per_side=25, seed=seed) for seed in range(400)]
    assert abs(np.mean(right) - 25) < 5 * math.sqrt(50 / 4 / 400)


def test_guesses_name_the_extremes() -> None:
    members, others = np.array([9.0, 8, 1]), np.array([0.0, 2, 7])
    assert correct_guesses(members, others, per_side=1, seed=0) == 2
    assert correct_guesses(others, members, per_side=1, seed=0) == 0
    with pytest.raises(InvalidValue):
        correct_guesses(members, others, per_side=4, seed=0)


def _simulated(m: int, mu: float, seed: int) -> int:
    """Right guesses about m coins, each released through a Gaussian mechanism of sensitivity 1."""
    rng = np.random.default_rng(seed)
    coins = rng.random(m) < 0.5
    scores = coins + (rng.standard_normal(m) / mu if mu > 0 else rng.standard_normal(m) - coins)
    return correct_guesses(scores[coins], scores[~coins], per_side=guesses_per_side(m), seed=seed)


def test_the_gaussian_oracle_gives_its_known_values() -> None:
    for mu, epsilon in ((0.5, 1.993091), (1, 4.377178), (2, 9.997256), (3, 16.675494)):
        assert oracles.gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1e-5)
    for epsilon, mu in ((1, 0.268051), (4, 0.924931), (8, 1.666031)):
        assert oracles.gaussian_mu(epsilon, 1e-5) == pytest.approx(mu, abs=1e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("m", [200, 1000])
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
def test_coverage_and_power_on_a_gaussian_mechanism(m: int, epsilon: float) -> None:
    """40 seeds. False violations: 8 or more of 40 at the nominal 5 % have probability 0.0007.

    Power: a correct audit of this mechanism recovers 20 to 40 % of epsilon; a quarter is asked for
    where the reference gives about a third (m = 1000, epsilon 4 and 8).
    """
    mu = oracles.gaussian_mu(epsilon, 1e-5)
    guesses = 2 * guesses_per_side(m)
    bounds = [
        epsilon_lower_bound(m=m, guesses=guesses, correct=_simulated(m, mu, seed), delta=1e-5)
        for seed in range(40)
    ]
    assert sum(bound > epsilon for bound in bounds) <= 7
    if m == 1000 and epsilon >= 4:
        assert float(np.median(bounds)) >= epsilon / 4
    assert float(np.median(bounds)) <= epsilon


@pytest.mark.statistical
def test_shuffled_labels_certify_nothing() -> None:
    """1000 seeds at epsilon 0: alarms are binomial with at most 5 %; above 76 has p < 0.0002.

    Taking the best of ten guess counts instead raises the rate above that line, which is why the
    count is fixed beforehand.
    """
    m, alarms, best_of_ten = 200, 0, 0
    grid = range(5, 51, 5)
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        scores, coins = rng.standard_normal(m), rng.random(m) < 0.5
        sides = scores[coins], scores[~coins]

        def rejects(per_side: int, sides: tuple[Floats, Floats] = sides) -> bool:
            right = correct_guesses(*sides, per_side=per_side, seed=0)
            p = p_value(m=m, guesses=2 * per_side, correct=right, epsilon=0.0, delta=1e-5)
            return p < 0.05

        alarms += rejects(guesses_per_side(m))
        best_of_ten += any(rejects(per_side) for per_side in grid)
    assert alarms <= 76
    assert best_of_ten > 76


def test_a_record_canary_is_not_judged_by_the_add_or_remove_epsilon() -> None:
    texts = oracles.canaries(500, 500)
    plain = oracles.context(texts, gain=6.0, claim=oracles.client_claim(1.0, 12.0))
    finding = ONE_RUN.run(plain)
    assert finding.value is not None
    assert finding.value > 1.0  # above the claimed epsilon
    assert finding.verdict != "violation"  # but below the one that covers the canary
    assert finding.details["epsilon_applicable"] == 12.0


def test_a_bound_above_the_applicable_epsilon_is_a_violation() -> None:
    texts = oracles.canaries(500, 500)
    wrong = oracles.context(texts, gain=6.0, claim=oracles.client_claim(0.7, 1.1))
    finding = ONE_RUN.run(wrong)
    assert finding.verdict == "violation"
    assert finding.detected
    assert finding.ceiling is not None
    assert finding.value is not None
    assert 1.1 < finding.value <= finding.ceiling


def test_without_the_applicable_epsilon_nothing_is_a_violation() -> None:
    unknown = oracles.context(
        oracles.canaries(500, 500), gain=6.0, claim=oracles.client_claim(0.01, None)
    )
    assert ONE_RUN.run(unknown).verdict == "inconclusive"


@pytest.mark.parametrize("change", [{"per_client": 2}, {"independent_coins": False}])
def test_canaries_that_break_the_theorem_certify_nothing(change: dict[str, int]) -> None:
    texts = replace(oracles.canaries(500, 500), **change)  # type: ignore[arg-type]
    finding = ONE_RUN.run(oracles.context(texts, gain=6.0, claim=oracles.client_claim(0.7, 1.1)))
    assert (finding.verdict, finding.value, finding.detected) == ("inconclusive", None, None)


def test_two_canaries_in_one_client_are_fine_at_example_level() -> None:
    texts = replace(oracles.canaries(500, 500), per_client=2)
    finding = ONE_RUN.run(oracles.context(texts, gain=6.0, claim=oracles.example_claim(1.1)))
    assert finding.verdict == "violation"


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(TooFewCanaries):
        ONE_RUN.run(oracles.context(oracles.canaries(7, 50), gain=1.0))
