"""Exposure: known answers, its null, and a planted leak."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit.exposure import CHANCE_BITS, Exposure, exposure
from shared.errors import InvalidValue, TooFewCanaries
from tests.server.audit import oracles

EXPOSURE = Exposure()


def test_known_answers_in_the_convention_of_the_secret_sharer() -> None:
    references = np.arange(1.0, 17.0)
    found = exposure(np.array([0.0, 3.5, 20.0]), references, space=16)
    assert found == pytest.approx([4.0, 2.0, math.log2(16 / 17)])


def test_ties_count_against_the_canary() -> None:
    references = np.array([1.0, 1.0, 2.0])
    assert exposure(np.array([1.0]), references)[0] == pytest.approx(math.log2(4 / 3))
    assert exposure(np.array([0.5]), references)[0] == pytest.approx(2.0)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.floats(-20, 20))
def test_exposure_lies_between_zero_and_its_ceiling(refs: list[float], loss: float) -> None:
    found = float(exposure(np.array([loss]), np.array(refs))[0])
    assert 0 <= found <= math.log2(len(refs) + 1) + 1e-12


def test_exposure_needs_references_and_a_space_that_holds_them() -> None:
    with pytest.raises(InvalidValue):
        exposure(np.array([1.0]), np.array([]))
    with pytest.raises(InvalidValue):
        exposure(np.array([1.0]), np.arange(10.0), space=9)


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


def test_a_planted_leak_is_found_and_explained() -> None:
    finding = EXPOSURE.run(oracles.context(oracles.canaries(), gain=6.0))
    assert finding.value is not None
    assert finding.baseline is not None
    assert finding.interval is not None
    assert finding.value > 6
    assert finding.baseline < 2.5
    assert finding.detected
    assert finding.ceiling == pytest.approx(math.log2(257))
    assert finding.interval[0] <= finding.value <= finding.interval[1]
    assert finding.verdict == "inconclusive"  # nothing is claimed, so nothing is contradicted


@pytest.mark.statistical
def test_nothing_is_detected_where_nothing_was_learned() -> None:
    """100 seeds at alpha 0.05, corrected for two scores; 13 or more alarms have p < 0.0015."""
    texts = oracles.canaries(30, 30)
    alarms = sum(
        EXPOSURE.run(oracles.context(texts, gain=0.0, seed=seed)).detected is True
        for seed in range(100)
    )
    assert alarms <= 12


def test_too_few_references_are_refused() -> None:
    texts = replace(oracles.canaries(), references=oracles.names("reference", 15))
    with pytest.raises(TooFewCanaries, match="references=15"):
        EXPOSURE.run(oracles.context(texts, gain=0.0))
