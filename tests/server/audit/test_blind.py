"""The blind classifier against its definition, a half at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.audit.blind import word_scores


def test_a_half_is_scored_by_what_the_other_half_shows() -> None:
    members = ["red one", "red two", "red three", "red four"]
    nonmembers = ["blue one", "blue two", "blue three", "blue four"]
    folds = word_scores(members, nonmembers, rng=np.random.default_rng(0), smallest=2)
    # Two texts a side in the other half: "red" is in 2 + 1 of 2 + 2 members and in 0 + 1 of 2 + 2.
    weight = math.log(3 / 4) - math.log(1 / 4)
    for fold in folds:
        assert fold.members.shape == fold.nonmembers.shape == (2,)
        assert fold.members.min() >= weight - math.log(3)
        assert fold.members.min() > fold.nonmembers.max()


def test_scores_are_naive_bayes_by_hand() -> None:
    """Equal lengths and one word each: the score is the log-odds of that word."""
    members = ["aa"] * 6 + ["bb"] * 2
    nonmembers = ["aa"] * 2 + ["bb"] * 6
    folds = word_scores(members, nonmembers, rng=np.random.default_rng(1), smallest=4)
    seen = 0
    for half, fold in enumerate(folds):
        other = folds[1 - half]
        n_aa = [6, 2]
        # How many "aa" this half holds, told by how often the two values occur in it.
        values = np.unique(np.concatenate([fold.members, fold.nonmembers]))
        assert values.size <= 2
        top = [
            int(np.count_nonzero(side == values[-1])) for side in (fold.members, fold.nonmembers)
        ]
        left = [n_aa[0] - top[0], n_aa[1] - top[1]]
        wanted = math.log((left[0] + 1) / 6) - math.log((left[1] + 1) / 6)
        if sum(left) >= 2:
            assert values[-1] == pytest.approx(wanted)
            seen += 1
        assert other.members.size == 4
    assert seen


def test_capitals_do_not_matter_and_few_texts_are_not_tried() -> None:
    rng = np.random.default_rng(2)
    upper = word_scores(["AA x"] * 4, ["bb y"] * 4, rng=np.random.default_rng(3), smallest=2)
    lower = word_scores(["aa x"] * 4, ["BB y"] * 4, rng=np.random.default_rng(3), smallest=2)
    for one, other in zip(upper, lower, strict=True):
        assert one.members.tolist() == other.members.tolist()
    assert word_scores(["a"] * 4, ["b"] * 3, rng=rng, smallest=2) == []
