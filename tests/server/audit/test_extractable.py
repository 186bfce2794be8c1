"""Extractability from one reading: known answers, brute force, and what sampling really gives."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit.extractable import (
    Trace,
    mcnemar_p_value,
    queries_needed,
    restore,
    store,
    stratified_p_value,
    summary,
)
from server.audit.target import Passage, Reading
from shared.errors import AuditError, InvalidValue
from tests.server.audit.babbler import Babbler

LN10 = math.log(10)


def reading(ranks: list[int], p: float = 0.5, mass: float = 1.0) -> Reading:
    count = len(ranks)
    return Reading(
        log_probability=np.full(count, math.log(p)),
        expected=np.full(count, -2.0),
        spread=np.ones(count),
        rank=np.array(ranks, dtype=np.int64),
        log_mass=np.full(count, math.log(mass)),
    )


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [(3, (106, 693, 2302)), (4, (1054, 6932, 23025)), (6, (105361, 693147, 2302584))],
)
def test_known_numbers_of_queries(exponent: int, expected: tuple[int, int, int]) -> None:
    """Hayes et al.: n >= ln(1 - p) / ln(1 - p_z)."""
    log_p = -exponent * LN10
    assert tuple(queries_needed(log_p, p) for p in (0.1, 0.5, 0.9)) == expected


@given(st.floats(-25, -1e-6), st.floats(0.01, 0.99))
def test_the_number_of_queries_is_the_smallest_that_does(log_p: float, chance: float) -> None:
    """With fifty digits: n tries reach the chance, n - 1 do not, but for a float's rounding."""
    n = queries_needed(log_p, chance)
    with localcontext(prec=50):
        each = (1 - Decimal(log_p).exp()).ln()
        assert 1 - (Decimal(n) * each).exp() >= Decimal(chance) * (1 - Decimal("1e-9"))
        assert 1 - (Decimal(n - 1) * each).exp() < Decimal(chance) * (1 + Decimal("1e-9"))


def test_probabilities_at_both_ends_keep_their_digits() -> None:
    assert queries_needed(0.0, 0.999) == 1
    assert queries_needed(-1e-300, 0.999) == 1
    # p = 1 - 1e-12: one sample fails with 1e-12, so two are needed for 1 - 1e-15.
    assert queries_needed(-1e-12, 1 - 1e-15) == 2
    assert queries_needed(-650.0, 0.5) == pytest.approx(math.exp(650) * math.log(2))
    assert queries_needed(-900.0, 0.5) == math.inf
    for wrong in (0.1, math.nan):
        with pytest.raises(InvalidValue):
            queries_needed(wrong, 0.5)
    with pytest.raises(InvalidValue):
        queries_needed(-1.0, 1.0)


def test_a_token_outside_the_top_makes_a_text_impossible() -> None:
    inside, outside = Trace.of(reading([0, 39])), Trace.of(reading([0, 40]))
    assert inside.log_p == pytest.approx(2 * math.log(0.5))
    assert outside.log_p is None
    assert inside.discoverable(1000, 0.1)
    assert not outside.discoverable(10**9, 0.1)


def test_probabilities_are_of_the_truncated_distribution() -> None:
    assert Trace.of(reading([0, 0], p=0.4, mass=0.8)).log_p == pytest.approx(2 * math.log(0.5))
    # A model that is certain: rounding may put the token above the mass of all.
    assert Trace.of(reading([0], p=1.0, mass=1 - 1e-16)).log_p == 0.0


@pytest.mark.parametrize("ranks", list(itertools.product([0, 3], repeat=4)))
def test_strength_and_memorization_agree_with_their_definitions(ranks: tuple[int, ...]) -> None:
    """open-unlearning: 1 - min{k : greedy from x_<k gives x_>=k} / |x|, and the share of hits."""
    trace = Trace.of(reading(list(ranks)))
    shortest = next(k for k in range(5) if all(rank == 0 for rank in ranks[k:]))
    assert trace.strength == 1 - shortest / 4
    assert trace.memorized == ranks.count(0) / 4
    assert trace.greedy == (ranks == (0, 0, 0, 0))
    for shown in range(4):
        assert trace.greedy_after(shown) == all(rank == 0 for rank in ranks[shown:])
    assert not trace.greedy_after(4)


def test_what_greedy_decoding_writes_is_what_the_ranks_say() -> None:
    texts = ["a b c d e f", "g h i j k l"]
    model = Babbler(texts, [texts[0]], strength=0.95)
    for text in texts:
        words = text.split(" ")
        prompt, rest = " ".join(words[:2]), " ".join(words[2:])
        whole = model.read([Passage(text=text)], adapter=True)[0]
        trace = Trace.of(whole)
        (written,) = model.write([prompt], adapter=True, max_tokens=4)
        assert trace.greedy_after(2) == (written.strip() == rest)
    assert Trace.of(model.read([Passage(text=texts[0])], adapter=True)[0]).tail == 5


@pytest.mark.statistical
def test_the_probability_is_how_often_sampling_writes_the_text() -> None:
    """20,000 samples among the 40 likeliest words of 60: within 5 standard errors (p < 1e-6)."""
    vocabulary = [f"w{place}" for place in range(60)]
    model = Babbler(vocabulary, ["w1 w2 w3 w4"], strength=0.5, seed=3)
    samples = 20_000
    written = model.write(["w1 w2"] * samples, adapter=True, max_tokens=2, temperature=1.0, seed=1)
    whole = model.read([Passage(text="w1 w2 w3 w4")], adapter=True)[0]
    own = Reading(
        log_probability=whole.log_probability[2:],
        expected=whole.expected[2:],
        spread=whole.spread[2:],
        rank=whole.rank[2:],
        log_mass=whole.log_mass[2:],
    )
    log_p = Trace.of(own).log_p
    assert log_p is not None
    p = math.exp(log_p)
    share = sum(text == " w3 w4" for text in written) / samples
    assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / samples))


def test_one_stratum_is_fishers_exact_test() -> None:
    for hits, others_hit in ((5, 1), (0, 3), (10, 10), (0, 0)):
        table = [[hits, 10 - hits], [others_hit, 12 - others_hit]]
        expected = float(reference.fisher_exact(table, alternative="greater").pvalue)
        found = stratified_p_value([(hits, 10, others_hit, 12)])
        assert found == pytest.approx(expected, rel=1e-9)


def test_strata_agree_with_counting_every_labelling() -> None:
    """Two strata of 2 + 2 and 1 + 2 texts, every choice of members counted."""
    tables = [(2, 2, 1, 2), (1, 1, 0, 2)]
    totals = []
    for first in itertools.combinations([1, 1, 1, 0], 2):
        totals += [sum(first) + second for second in (1, 0, 0)]
    exact = np.mean([total >= 3 for total in totals])
    assert stratified_p_value(tables) == pytest.approx(float(exact))
    assert stratified_p_value([]) == 1.0
    assert stratified_p_value([*tables, (0, 0, 0, 0)]) == pytest.approx(float(exact))
    with pytest.raises(InvalidValue):
        stratified_p_value([(3, 2, 0, 2)])


def test_mcnemar_agrees_with_the_sign_test() -> None:
    with_adapter = [True] * 7 + [False] * 2 + [True] * 3
    without = [False] * 7 + [True] * 2 + [True] * 3
    expected = reference.binomtest(7, 9, alternative="greater").pvalue
    assert mcnemar_p_value(with_adapter, without) == pytest.approx(float(expected))
    assert mcnemar_p_value([True, False], [True, False]) == 1.0


def test_traces_survive_storage() -> None:
    traces = [Trace.of(reading([0, 0])), Trace.of(reading([41, 0])), Trace.of(reading([2, 5]))]
    again = restore({"x": store(traces)}, "x")
    assert [t.tail for t in again] == [2, 1, 0]
    assert [t.log_p is None for t in again] == [False, True, False]
    assert summary(again)["discoverable_1000_0.1"] == 2
    assert summary([])["count"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"tokens": [2]},
        {"tokens": [0, 2]},
        {"tail": [3, 1]},
        {"hits": [0, 1]},
        {"log_p": [0.5, None]},
        {"log_p": ["x", None]},
        {"log_p": None},
        {"hits": [2, True]},
    ],
)
def test_damaged_traces_are_an_audit_error(damage: dict[str, Any]) -> None:
    good = store([Trace.of(reading([0, 0])), Trace.of(reading([41, 0]))])
    with pytest.raises(AuditError):
        restore({"x": {**good, **damage}}, "x")
