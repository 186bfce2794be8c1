"""Attacks that never look at the model: can the two sides be told apart before training?

Most published successes of membership inference on language models are of this kind: members and
non-members came from other sources or other years (Duan et al., "Do Membership Inference Attacks
Work on Large Language Models?", 2024; Das, Zhang and Tramer, "Blind Baselines Beat Membership
Inference Attacks for Foundation Models", 2025). An audit on such sides measures the difference of
the sides, and says nothing about training.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.audit.protocol import Floats

_WORD = re.compile(r"\w+")
_RARE = 2
"""A word in fewer training texts than this says nothing about the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Scores of one half, by a classifier that saw the other half alone.

    Args:
        members: log-odds of the members of this half, shape ``(n,)``.
        nonmembers: the same of its non-members.
    """

    members: Floats
    nonmembers: Floats


def word_scores(
    members: Sequence[str],
    nonmembers: Sequence[str],
    *,
    rng: np.random.Generator,
    smallest: int,
) -> list[Fold]:
    """Score texts by their words and length alone, with a classifier trained on the other half.

    The classifier is naive Bayes on the presence of words. A half is scored by a classifier that
    knows none of its labels, so a permutation test within a half is exact.

    Args:
        members: texts of one side.
        nonmembers: texts of the other side.
        rng: draws the halves.
        smallest: fewest texts of a side in a half.

    Returns:
        Two folds; none if there are too few texts.
    """
    if min(len(members), len(nonmembers)) // 2 < smallest:
        return []
    sides = [[_features(text) for text in side] for side in (members, nonmembers)]
    halves = [_halves(side, rng) for side in sides]
    folds = []
    for half in (0, 1):
        weights = _log_odds(halves[0][1 - half], halves[1][1 - half])
        scored = [
            np.array([sum(weights.get(word, 0.0) for word in sorted(text)) for text in side[half]])
            for side in halves
        ]
        folds.append(Fold(members=scored[0], nonmembers=scored[1]))
    return folds


def _features(text: str) -> frozenset[str]:
    """Return the words of a text, and its length in characters and words by half octaves."""
    words = _WORD.findall(text.lower())
    sizes = (round(2 * math.log2(1 + size)) for size in (len(text), len(words)))
    # No word has a space in it, so these cannot be mistaken for words.
    lengths = (f"{unit} {size}" for unit, size in zip(("characters", "words"), sizes, strict=True))
    return frozenset((*words, *lengths))


def _halves(
    side: Sequence[frozenset[str]], rng: np.random.Generator
) -> tuple[list[frozenset[str]], list[frozenset[str]]]:
    """Deal one side into two halves at random."""
    order = rng.permutation(len(side))
    middle = len(side) // 2
    return [side[i] for i in order[:middle]], [side[i] for i in order[middle:]]


def _log_odds(
    members: Sequence[frozenset[str]], nonmembers: Sequence[frozenset[str]]
) -> dict[str, float]:
    """Return how much a word speaks for a member, each side smoothed by one text."""
    inside, outside = (Counter(w for text in side for w in text) for side in (members, nonmembers))
    n_in, n_out = len(members) + 2, len(nonmembers) + 2
    return {
        word: math.log((inside[word] + 1) / n_in) - math.log((outside[word] + 1) / n_out)
        for word in inside.keys() | outside.keys()
        if inside[word] + outside[word] >= _RARE
    }
