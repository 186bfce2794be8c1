"""ROUGE between lists of tokens: how much of a text came back, whatever the attack.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004). The F-measure, as work on
gradient inversion reports it, over the model's own tokens: a text that was cut ends inside a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from shared import validate
from shared.errors import InvalidValue


def rouge_n(found: Sequence[Hashable], truth: Sequence[Hashable], *, n: int) -> float:
    """Return the F-measure of shared n-grams, each counted as often as both sides have it.

    Args:
        found: what an attack gave.
        truth: what was there.
        n: length of an n-gram, at least 1.

    Returns:
        Within [0, 1]; 0 where a side is too short to have an n-gram.
    """
    validate.positive_integer(n=n)
    ours, theirs = _grams(found, n), _grams(truth, n)
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 0.0


def matched_rouge(
    found: Sequence[Sequence[Hashable]], truth: Sequence[Sequence[Hashable]]
) -> tuple[float, float]:
    """Return ROUGE-1 and ROUGE-2 of several texts, means over texts.

    The order of texts in a batch is not in its gradient, so each found text is held against
    another true one, such that ROUGE-1 is largest in total.

    Raises:
        InvalidValue: unless there are as many found texts as true ones, and at least one.
    """
    if not 0 < len(found) == len(truth):
        msg = f"found={len(found)}, truth={len(truth)} texts, expected as many, at least one."
        raise InvalidValue(msg)
    scores = np.array([[rouge_n(one, other, n=1) for other in truth] for one in found])
    rows, columns = linear_sum_assignment(scores, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    second = [rouge_n(found[row], truth[column], n=2) for row, column in pairs]
    return float(scores[rows, columns].mean()), float(np.mean(second))


def _grams(tokens: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    """Return how often each n-gram stands in a text."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
