"""How well texts are classified, from counts by class; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

MOST_LABELS = 1000


def macro_f1(hits: Sequence[int], predicted: Sequence[int], actual: Sequence[int]) -> float:
    """Return the mean over classes of ``2 hits / (predicted + actual)``.

    Args:
        hits: by class, how many examples of it were predicted so.
        predicted: by class, how often it was predicted.
        actual: by class, how many examples it has.

    Returns:
        A number in ``[0, 1]``; classes that are neither predicted nor there do not count. 0 where
        there is none.
    """
    right, both = np.asarray(hits, dtype=np.float64), np.add(predicted, actual)
    there = both > 0
    return float(np.mean(2 * right[there] / both[there])) if there.any() else 0.0


def figures(counts: Iterable[Sequence[int]], *, labels: int) -> dict[str, float]:
    """Return accuracy and macro-F1 of some clients' held-out examples, taken together.

    Args:
        counts: of each client ``hits``, ``predicted`` and ``actual`` one after the other, each of
            ``labels`` numbers; others are left out.
        labels: number of classes.

    Returns:
        ``accuracy`` and ``macro_f1``; empty if there is no example.
    """
    total = np.zeros((3, labels), dtype=np.int64)
    for one in counts:
        if len(one) == total.size:
            total += np.asarray(one, dtype=np.int64).reshape(total.shape)
    hits, predicted, actual = total
    if not actual.sum() > 0:
        return {}
    return {
        "accuracy": float(hits.sum() / actual.sum()),
        "macro_f1": macro_f1(hits.tolist(), predicted.tolist(), actual.tolist()),
    }
