"""Before and after on the same questions: differences, their errors, exact tests.

Every question is answered twice, so that the answers are paired: the error of a difference comes
from the differences, not from two independent scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.seeding import data_rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

TWO_SIDED_95 = 1.959963984540054
_DRAWS = 2000


def score(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and its standard error (sample deviation over the root of the number).

    Args:
        values: at least one; the error of one alone is None.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return {"score": float(numbers.mean()), "se": _standard_error(numbers)}


def difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Return the mean of paired differences, its standard error and a normal 95 % interval."""
    numbers = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    mean, error = float(numbers.mean()), _standard_error(numbers)
    width = None if error is None else TWO_SIDED_95 * error
    interval = None if width is None else [mean - width, mean + width]
    return {"mean": mean, "se": error, "ci95": interval}


def discordant(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Return how many questions only one of the two gets, and McNemar's exact p-value."""
    pairs = list(zip(before, after, strict=True))
    lost = sum(was and not now for was, now in pairs)
    won = sum(now and not was for was, now in pairs)
    return {"only_before": lost, "only_after": won, "p": sign_test(lost, won)}


def sign_test(one: int, other: int) -> float:
    """Return the two-sided exact p-value that two counts come from fair coins.

    McNemar's exact test on discordant pairs, and the sign test of clients that got better or worse.
    1 for no counts at all.

    Source:
        Q. McNemar, Psychometrika 12 (1947); the exact form takes the binomial distribution itself.
    """
    total, least = one + other, min(one, other)
    term = tail = 1
    for taken in range(least):
        term = term * (total - taken) // (taken + 1)
        tail += term
    return min(1.0, 2 * _ratio(tail, total))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that any of them may be read (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def interval_of(
    before: Sequence[float], after: Sequence[float], statistic: str, *, seed: int
) -> list[float] | None:
    """Return a 95 % bootstrap interval over clients of the change of a statistic.

    Args:
        before: one figure for each client.
        after: the same clients.
        statistic: ``"worst_decile"``, the only one whose error has no formula here.
        seed: of the draws.

    Returns:
        Percentiles 2.5 and 97.5 of the change, with the clients drawn together; None for fewer
        than two clients.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if not first.size >= 2:
        return None
    rng = data_rng(seed, "eval-bootstrap", statistic)
    changes = []
    for _ in range(_DRAWS):
        drawn = rng.integers(0, first.size, first.size)
        changes.append(worst_decile(second[drawn]) - worst_decile(first[drawn]))
    low, high = np.percentile(changes, [2.5, 97.5])
    return [float(low), float(high)]


def worst_decile(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the mean of the largest tenth, rounded up to whole clients."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return float(ordered[-math.ceil(ordered.size / 10) :].mean())


def _standard_error(numbers: NDArray[np.float64]) -> float | None:
    """Return the standard error of a mean; None for one number."""
    if not numbers.size > 1:
        return None
    return float(numbers.std(ddof=1) / math.sqrt(numbers.size))


def _ratio(count: int, halvings: int) -> float:
    """Return ``count / 2**halvings`` for integers that no float holds."""
    excess = max(0, count.bit_length() - 64)
    return math.ldexp(count >> excess, excess - halvings)
