"""ROUGE against counting by hand and by brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audit.rouge import matched_rouge, rouge_n
from shared.errors import InvalidValue

TOKENS = st.lists(st.integers(0, 3), max_size=7)


def brute(found: list[int], truth: list[int], n: int) -> float:
    """Pair off equal n-grams one by one."""
    ours = [found[i : i + n] for i in range(len(found) - n + 1)]
    theirs = [truth[i : i + n] for i in range(len(truth) - n + 1)]
    total, shared = len(ours) + len(theirs), 0
    for gram in ours:
        if gram in theirs:
            theirs.remove(gram)
            shared += 1
    return 2 * shared / total if total else 0.0


@given(TOKENS, TOKENS, st.integers(1, 3))
def test_shared_grams_are_counted_as_often_as_both_have_them(
    found: list[int], truth: list[int], n: int
) -> None:
    assert rouge_n(found, truth, n=n) == pytest.approx(brute(found, truth, n))


def test_known_answers() -> None:
    assert rouge_n("the cat sat".split(), "the cat ran off".split(), n=1) == pytest.approx(4 / 7)
    assert rouge_n("the cat sat".split(), "the cat ran off".split(), n=2) == pytest.approx(2 / 5)
    assert rouge_n([1, 1, 1], [1], n=1) == pytest.approx(0.5)
    assert rouge_n([1, 2], [1, 2], n=1) == 1.0
    assert rouge_n([], [], n=1) == rouge_n([1], [1], n=2) == 0.0
    # All words in another order: every word, hardly a pair.
    assert rouge_n([1, 2, 3], [3, 2, 1], n=1) == 1.0
    assert rouge_n([1, 2, 3], [3, 2, 1], n=2) == 0.0


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4))
def test_texts_are_matched_so_that_most_comes_back(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    found, truth = [list(side) for side in zip(*pairs, strict=True)]
    best = max(
        sum(brute(one, other, 1) for one, other in zip(found, order, strict=True)) / len(found)
        for order in itertools.permutations(truth)
    )
    assert matched_rouge(found, truth)[0] == pytest.approx(best)


def test_the_order_of_a_batch_does_not_count() -> None:
    assert matched_rouge([[1, 2], [3, 4]], [[3, 4], [1, 2]]) == (1.0, 1.0)
    assert matched_rouge([[1, 2], [1, 2]], [[3, 4], [1, 2]]) == (0.5, 0.5)


@pytest.mark.parametrize(("found", "truth"), [([], []), ([[1]], [])])
def test_nothing_to_match_is_refused(found: list[list[int]], truth: list[list[int]]) -> None:
    with pytest.raises(InvalidValue):
        matched_rouge(found, truth)
