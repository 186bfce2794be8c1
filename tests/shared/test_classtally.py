"""Accuracy and macro-F1 from counts, against their definitions over single examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.classtally import figures, macro_f1
from shared.errors import SchemaMismatch
from shared.wire import Measurement, decode_measurement, encode_measurement

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def counts(pairs: list[tuple[int, int]]) -> list[int]:
    hits = [sum(t == g == c for t, g in pairs) for c in range(4)]
    guesses = [sum(g == c for _, g in pairs) for c in range(4)]
    return [*hits, *guesses, *(sum(t == c for t, _ in pairs) for c in range(4))]


@given(PAIRS, PAIRS)
def test_figures_of_two_clients_are_those_of_their_texts_together(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    """Oracle: precision and recall class by class, over all texts."""
    both, scores = one + other, []
    for label in {label for pair in both for label in pair}:
        right = sum(t == g == label for t, g in both)
        wrong = sum((t == label) != (g == label) for t, g in both)
        scores.append(right / (right + wrong / 2))
    found = figures([counts(one), counts(other)], labels=4)
    assert found["macro_f1"] == pytest.approx(np.mean(scores))
    assert found["accuracy"] == pytest.approx(np.mean([t == g for t, g in both]))


def test_no_text_has_no_figures() -> None:
    assert figures([], labels=3) == {}
    assert figures([(1, 2)], labels=3) == {}
    assert macro_f1([0], [0], [0]) == 0


def test_counts_travel_and_strange_ones_are_refused() -> None:
    measured = Measurement(loss=1.5, tokens=4, classes=(1, 2, 1, 3, 1, 3))
    assert decode_measurement(encode_measurement(measured)) == measured
    for strange in ((1, 2), (1, 2, 5), (-1, 0, 0), (0,) * 3003):
        sent = encode_measurement(Measurement(loss=1.5, tokens=4, classes=strange))
        with pytest.raises(SchemaMismatch):
            decode_measurement(sent)
