"""False alarms and power of the conformance tests, on noise that numpy and scipy drew.

Every test states its false-alarm rate; seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from server.audit.conformance import LEVEL, TESTS, Check
from server.audit.declared import declared_noise
from server.audit.noisefloor import check_ceiling, check_floor, measure_releases
from server.audit.noisetests import noise_statistics, noise_tests
from server.audit.protocol import Floats
from server.audit.sampling import check_sampling, spread, spread_p_value
from shared.privacy.plan import PrivacyPlan
from tests.server.audit import mechanisms

pytestmark = pytest.mark.statistical

ALARM = 1e-4
PLANS = {**mechanisms.FORMS, "coarse": mechanisms.COARSE}
Signal = Callable[[Floats, int], Floats]


def p_of(check: Check, name: str) -> float:
    (found,) = [test.p for test in check.tests if test.name == name]
    return found


def floor(plan: PrivacyPlan, values: Floats) -> Check:
    return check_floor(measure_releases(mechanisms.record(plan, values)))


def stddev_of_mean(plan: PrivacyPlan) -> float:
    noise = declared_noise(plan)
    assert noise is not None
    assert plan.clipping_norm is not None
    return noise.over_clip * plan.clipping_norm / noise.divisor


@pytest.mark.parametrize("name", sorted(PLANS))
def test_the_floor_is_exact_where_nobody_says_anything(name: str) -> None:
    """300 runs of noise alone: the p-value of all rounds is uniform; false alarm 1e-4 each.

    Skellam noise of variance 5.8 (grid 2) is among them: its tails are heavier than normal ones,
    and the moments that are matched take care of that.
    """
    plan = PLANS[name]
    found = [
        p_of(floor(plan, mechanisms.pure_noise(plan, rng, rounds=6, width=256)), "all rounds")
        for rng in (np.random.default_rng([1, seed]) for seed in range(300))
    ]
    assert stats.kstest(found, "uniform").pvalue > ALARM


def persistent(values: Floats, seed: int) -> Floats:
    """Everybody pulls one way in every round, about as long as the noise."""
    direction = np.random.default_rng([2, seed]).standard_normal(values.shape[1])
    return values + direction / np.linalg.norm(direction) * np.linalg.norm(values[0])


def adaptive(values: Floats, seed: int) -> Floats:
    """Clients answer a release by sending it back: the most that adapting can take away."""
    del seed
    found = values.copy()
    for number in range(1, found.shape[0]):
        found[number] -= 0.9 * found[number - 1]
    return found


def shrinking(values: Floats, seed: int) -> Floats:
    """Clients send the negative of the mean of all earlier releases."""
    del seed
    found = values.copy()
    for number in range(1, found.shape[0]):
        found[number] -= found[:number].mean(axis=0)
    return found


@pytest.mark.parametrize("signal", [persistent, adaptive, shrinking])
@pytest.mark.parametrize("name", ["gaussian", "correlated", "distributed"])
def test_no_behaviour_of_clients_makes_the_floor_cry(name: str, signal: Signal) -> None:
    """At level 0.1, at most Bin(300, 0.1)'s 1 - 1e-4 quantile of 300 honest runs are below it.

    For the projected tests signals that answer earlier releases are in the span; for the blocks
    they only add length.
    """
    plan = PLANS[name]
    most = stats.binom.ppf(1 - ALARM, 300, 0.1)
    below = {"all rounds": 0, "worst round": 0, "worst block": 0}
    for seed in range(300):
        rng = np.random.default_rng([3, seed])
        values = signal(mechanisms.pure_noise(plan, rng, rounds=5, width=600), seed)
        check = floor(plan, values)
        for test in below:
            below[test] += p_of(check, test) <= 0.1
    assert max(below.values()) <= most


@pytest.mark.parametrize("name", sorted(mechanisms.FORMS))
def test_the_ceiling_holds_for_updates_of_the_full_clip(name: str) -> None:
    """300 runs in which as many clients as a public bound allows pull one way, all at the clip.

    The signal is then exactly as long as the test allows, so p-values are uniform or larger; at
    level 0.1 with false alarm 1e-4.
    """
    plan = PLANS[name]
    noise = declared_noise(plan)
    assert noise is not None
    below = {"all rounds": 0, "longest round": 0}
    width, rounds = 500, 5
    for seed in range(300):
        rng = np.random.default_rng([4, seed])
        values = mechanisms.pure_noise(plan, rng, rounds=rounds, width=width)
        most = 10.0 if plan.correlated is not None else stats.binom.isf(1e-9, 40, 0.25)
        direction = np.zeros(width)
        direction[seed % width] = most * mechanisms.CLIP / noise.divisor
        check = check_ceiling(measure_releases(mechanisms.record(plan, values + direction)))
        for test in below:
            below[test] += p_of(check, test) <= 0.1
    assert max(below.values()) <= stats.binom.ppf(1 - ALARM, 300, 0.1)


@pytest.mark.parametrize("name", sorted(mechanisms.FORMS))
def test_the_ceiling_sees_updates_beyond_the_clip(name: str) -> None:
    """One summed update of the length that the finding states, in one round of five."""
    plan = PLANS[name]
    rng = np.random.default_rng(5)
    values = mechanisms.pure_noise(plan, rng, rounds=5, width=500)
    noise = declared_noise(plan)
    assert noise is not None
    evidence = measure_releases(mechanisms.record(plan, values))
    signal, kept = max(evidence["signal"]), evidence["kept"]
    length = math.sqrt(signal + 12 * math.sqrt(2 * kept)) * stddev_of_mean(plan)
    direction = rng.standard_normal(500)
    values[4] += length * direction / np.linalg.norm(direction)
    assert check_ceiling(measure_releases(mechanisms.record(plan, values))).failures


@pytest.mark.parametrize(
    ("share", "rounds", "power"), [(0.98, 1, 0.97), (0.99, 1, 0.23), (0.99, 10, 1.0)]
)
def test_a_small_shortfall_of_noise_is_caught_as_often_as_published(
    share: float, rounds: int, power: float
) -> None:
    """Two-sided size test at level 0.001 and d = 32,768; 200 runs, within 4 binomial deviations."""
    cells = 32_768 * rounds
    energies = stats.chi2.rvs(cells, size=200, random_state=np.random.default_rng(6)) * share**2
    caught = 0
    for energy in energies:
        evidence = {
            "rounds": 1,
            "dimension": cells,
            "kurtosis": 0.0,
            "mean": 0.0,
            "energies": [float(energy)],
            "distance": 0.0,
            "correlation": 0.0,
            "lags": 1,
            "lag_correlation": 0.0,
        }
        (size,) = [t.p for t in noise_tests(evidence, who="It") if t.name == "size"]
        caught += size <= 0.001
    assert abs(caught / 200 - power) <= 4 * math.sqrt(power * (1 - power) / 200) + 0.01


@pytest.mark.parametrize("variance", [None, 4.0, 40_000.0])
def test_rehearsed_noise_of_the_right_law_is_not_flagged(variance: float | None) -> None:
    """200 rehearsals of honest noise: each test's p-value is uniform or larger; false alarm 1e-4.

    The size is uniform; the others are conservative, so they are held to level 0.1.
    """
    below = dict.fromkeys(["size", "size of a round", "mean", "law", "rounds", "coordinates"], 0)
    sizes = []
    for seed in range(200):
        rng = np.random.default_rng([7, seed])
        if variance is None:
            rows = rng.standard_normal((4, 1024))
        else:
            half = variance / 2
            rows = stats.skellam.rvs(half, half, size=(4, 1024), random_state=rng)
            rows = rows / math.sqrt(variance)
        tests = noise_tests(noise_statistics(rows, variance=variance), who="It")
        for test in tests:
            below[test.name] += test.p <= 0.1
            if test.name == "size":
                sizes.append(test.p)
    assert max(below.values()) <= stats.binom.ppf(1 - ALARM, 200, 0.1)
    assert stats.kstest(sizes, "uniform").pvalue > ALARM


@pytest.mark.parametrize("variance", [4.0, 40_000.0])
def test_noise_of_another_law_is_flagged(variance: float) -> None:
    """Rounded normal noise of the right variance is no Skellam noise of variance 4; Laplace is
    neither."""
    rng = np.random.default_rng(8)
    rows = rng.laplace(scale=math.sqrt(0.5), size=(4, 8192))
    whole = np.rint(rows * math.sqrt(variance)) / math.sqrt(variance)
    laws = noise_tests(noise_statistics(whole, variance=variance), who="It")
    assert [t.name for t in laws if t.failed and t.name == "law"] == ["law"]
    plain = noise_tests(noise_statistics(rows), who="It")
    assert any(t.name == "law" and t.failed for t in plain)


@pytest.mark.parametrize(
    ("population", "probability", "rounds"), [(6, 0.5, 3), (5, 0.3, 4), (40, 0.25, 12)]
)
def test_the_spread_of_cohorts_has_the_exact_law(
    population: int, probability: float, rounds: int
) -> None:
    """Against brute force over all outcomes, or over 200,000 draws (6 standard errors)."""
    centre = round(population * probability)
    rng = np.random.default_rng(9)
    draws = rng.binomial(population, probability, size=(200_000, rounds))
    squares = np.square(draws - centre).sum(axis=1)
    for value in np.quantile(squares, [0.001, 0.05, 0.5, 0.95, 0.999]).astype(int):
        low, high = float((squares <= value).mean()), float((squares >= value).mean())
        expected = min(1.0, 2 * min(low, high))
        found = spread_p_value(int(value), rounds, population, probability)
        assert found == pytest.approx(expected, abs=6 * math.sqrt(expected / 200_000) + 1e-4)


def test_cohorts_drawn_by_coins_are_not_flagged() -> None:
    """400 runs at level 0.1, for small and for large populations; false alarm 1e-4."""
    for population, probability in ((12, 0.5), (100_000, 0.01), (3_000_000, 0.3)):
        rng = np.random.default_rng([10, population])
        below = {"mean": 0, "spread": 0}
        for _ in range(400):
            sizes = rng.binomial(population, probability, size=20).tolist()
            check = check_sampling(spread(sizes, population=population, probability=probability))
            for name in below:
                below[name] += p_of(check, name) <= 0.1
        assert max(below.values()) <= stats.binom.ppf(1 - ALARM, 400, 0.1)


@pytest.mark.parametrize(("population", "probability"), [(40, 0.25), (10_000, 0.01)])
def test_fixed_batches_and_common_coins_are_flagged(population: int, probability: float) -> None:
    fixed = [round(population * probability)] * 30
    check = check_sampling(spread(fixed, population=population, probability=probability))
    assert [test.name for test in check.failures] == ["spread"]
    rng = np.random.default_rng(11)
    pairs = (2 * rng.binomial(population // 2, probability, size=200)).tolist()
    check = check_sampling(spread(pairs, population=population, probability=probability))
    assert [test.name for test in check.failures] == ["spread"]
    more = rng.binomial(population, 1.3 * probability, size=60).tolist()
    check = check_sampling(spread(more, population=population, probability=probability))
    assert "mean" in {test.name for test in check.failures}


@pytest.mark.parametrize("name", sorted(mechanisms.FORMS))
def test_half_of_the_noise_is_flagged_in_every_form(name: str) -> None:
    """The chance of missing it with 6 x 600 coordinates is below 1e-9."""
    plan = PLANS[name]
    rng = np.random.default_rng(12)
    values = 0.5 * mechanisms.pure_noise(plan, rng, rounds=6, width=600)
    assert {"all rounds", "worst round"} <= {t.name for t in floor(plan, values).failures}


def test_the_level_covers_all_tests() -> None:
    """The floor's own three tests over 300 honest runs: none fails (expected 300 x 3e-3 / 32)."""
    plan = replace(PLANS["gaussian"], rounds=4)
    assert pytest.approx(1e-3) == LEVEL
    failures = 0
    for seed in range(300):
        rng = np.random.default_rng([13, seed])
        values = mechanisms.pure_noise(plan, rng, rounds=4, width=1024)
        failures += bool(floor(plan, values).failures)
    assert failures <= stats.binom.ppf(1 - ALARM, 300, 3 * LEVEL / TESTS)
