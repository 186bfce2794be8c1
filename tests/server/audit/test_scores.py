"""Scores against published definitions, known answers, and brute force."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.audit import scores
from server.audit.protocol import Floats
from server.audit.target import Reading
from shared.errors import AuditError, InvalidValue


def reading(
    log_probability: list[float], expected: list[float] | None = None, spread: float = 1.0
) -> Reading:
    count = len(log_probability)
    return Reading(
        log_probability=np.array(log_probability, dtype=np.float64),
        expected=np.array(expected if expected is not None else [-2.0] * count),
        spread=np.full(count, spread),
        rank=np.zeros(count, dtype=np.int64),
        log_mass=np.zeros(count),
    )


def of_rows(rows: list[list[float]], tokens: list[int]) -> Reading:
    """A reading by the definition of its moments, from rows of probabilities."""
    p = np.array(rows)
    log_p = np.log(p)
    mean = (p * log_p).sum(axis=1)
    variance = (p * log_p**2).sum(axis=1) - mean**2
    return Reading(
        log_probability=log_p[np.arange(len(tokens)), tokens],
        expected=mean,
        spread=np.sqrt(np.maximum(variance, 0)),
        rank=np.zeros(len(tokens), dtype=np.int64),
        log_mass=np.zeros(len(tokens)),
    )


TABLE = of_rows([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5], [0.9, 0.05, 0.05]], [0, 2, 1])


def test_min_k_plus_known_answers() -> None:
    assert scores.standardised(TABLE) == pytest.approx([0.633092, 1.0, -3.0], abs=1e-6)
    assert scores.min_k_plus(TABLE) == pytest.approx(-3.0, abs=1e-6)
    assert scores.min_k(TABLE) == pytest.approx(-2.995732, abs=1e-6)
    assert scores.min_k_plus(TABLE, share=1.0) == pytest.approx((0.633092 + 1 - 3) / 3, abs=1e-6)


def test_a_uniform_or_certain_model_expected_everything() -> None:
    uniform = of_rows([[0.25] * 4, [0.7, 0.1, 0.1, 0.1]], [2, 1])
    flat = Reading(
        log_probability=uniform.log_probability,
        expected=uniform.expected,
        spread=np.array([0.0, uniform.spread[1]]),
        rank=uniform.rank,
        log_mass=uniform.log_mass,
    )
    found = scores.standardised(flat)
    assert found[0] == 0.0
    assert np.isfinite(found).all()


@given(
    st.lists(st.floats(-20, -0.01), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
)
def test_min_k_is_the_mean_of_the_lowest(values: list[float], share: float) -> None:
    count = max(1, int(share * len(values) + 1e-9))
    wanted = sum(sorted(values)[:count]) / count
    assert scores.min_k(reading(values), share=share) == pytest.approx(wanted)


def test_simple_scores_follow_their_definitions() -> None:
    tuned, base, lowered = reading([-1.0, -2.0]), reading([-3.0, -2.5]), reading([-2.0, -4.0])
    assert scores.mean_log_probability(tuned) == -1.5
    assert scores.reference(tuned, base) == pytest.approx(2.5)
    size = len(zlib.compress(b"some text"))
    assert scores.zlib_ratio(tuned, "some text") == pytest.approx(-1.5 / size)
    perplexity, lower = math.exp(1.5), math.exp(3.0)
    assert scores.lowercase(tuned, lowered) == pytest.approx(math.log(lower / perplexity))


def test_rmia_is_brute_force() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.random(30), rng.random((3, 30))
    population = rng.random(17)
    found = scores.rmia(scores.likelihood_ratio(p, q, a=0.3), population, gamma=1.5)
    wanted = []
    for i in range(30):
        mean_out = sum(q[k, i] for k in range(3)) / 3
        ratio = p[i] / ((1 + 0.3) / 2 * mean_out + (1 - 0.3) / 2)
        wanted.append(sum(ratio / z > 1.5 for z in population) / 17)
    assert found == pytest.approx(wanted)
    # The population never dominates itself at gamma = 1.
    assert scores.rmia(population, population).max() == pytest.approx(16 / 17)


def test_rmia_orders_as_the_ratio_does_at_gamma_one() -> None:
    rng = np.random.default_rng(2)
    ratios, population = rng.random(50), rng.random(1_000)
    order = np.argsort(ratios)
    assert (np.diff(scores.rmia(ratios, population)[order]) >= 0).all()


def test_rmia_without_any_probability_is_no_evidence() -> None:
    assert scores.likelihood_ratio(np.zeros(1), np.zeros((1, 1)), a=1.0).tolist() == [1.0]


def test_lira_is_the_ratio_of_two_normal_densities() -> None:
    rng = np.random.default_rng(3)
    x, inside, outside = rng.normal(size=9), rng.normal(1, 2, (6, 9)), rng.normal(size=(5, 9))
    wanted = stats.norm.logpdf(x, inside.mean(axis=0), inside.std(axis=0)) - stats.norm.logpdf(
        x, outside.mean(axis=0), outside.std(axis=0)
    )
    assert scores.lira(x, inside, outside) == pytest.approx(wanted)
    offline = 1 - stats.norm.sf(x, outside.mean(axis=0), outside.std(axis=0))
    assert scores.lira_offline(x, outside) == pytest.approx(offline)


def test_the_logit_keeps_probabilities_close_to_one() -> None:
    p = np.array([0.1, 0.5, 0.999])
    assert scores.logit_scaled(np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    # p = 1 - 1e-18 is 1 in floating point; its logit is 41.4 all the same.
    assert scores.logit_scaled(np.array([-1e-18])) == pytest.approx(18 * math.log(10))


BAD_REFERENCES = [np.zeros((1, 3)), np.zeros((0, 2)), np.full((1, 2), 1.5), np.full((1, 2), np.nan)]


@pytest.mark.parametrize("references", BAD_REFERENCES)
def test_ratios_of_something_else_are_refused(references: Floats) -> None:
    with pytest.raises(InvalidValue):
        scores.likelihood_ratio(np.array([0.5, 0.5]), references)


def test_numbers_out_of_range_are_refused() -> None:
    half = np.array([0.5])
    with pytest.raises(InvalidValue):
        scores.likelihood_ratio(half, half[None], a=1.5)
    with pytest.raises(InvalidValue):
        scores.rmia(half, np.array([]))
    with pytest.raises(InvalidValue):
        scores.rmia(half, half, gamma=0.0)
    with pytest.raises(InvalidValue):
        scores.min_k(reading([-1.0]), share=0.0)
    with pytest.raises(InvalidValue):
        scores.logit_scaled(np.array([0.0]))
    with pytest.raises(InvalidValue):
        scores.lira(half, np.ones((1, 1)), np.ones((2, 1)))
    with pytest.raises(AuditError):
        scores.mean_log_probability(reading([]))
