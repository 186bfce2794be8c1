"""Shared permutations against the same test done alone, and against every permutation there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats as reference_stats

from server.audit import stats
from server.audit.permutation import permutation_p_values
from server.audit.protocol import Floats
from shared.errors import InvalidValue, TooFewCanaries


def every_permutation(inside: Floats, outside: Floats) -> float:
    """The p-value over all ways to call ``n_in`` of the scores members."""
    ranks = reference_stats.rankdata(np.concatenate([inside, outside]))
    observed = ranks[: inside.size].sum()
    sums = [ranks[list(c)].sum() for c in combinations(range(ranks.size), inside.size)]
    return float(np.mean([s >= observed for s in sums]))


def test_p_values_are_those_of_all_permutations() -> None:
    """Four standard errors of 20,000 permutations: false-alarm rate 6e-5 per pair."""
    rng = np.random.default_rng(0)
    pairs = {
        f"{n_in} {n_out} {shift}": (
            rng.normal(shift, 1, n_in).round(1),
            rng.normal(size=n_out).round(1),
        )
        for n_in, n_out in ((5, 6), (6, 5), (4, 8))
        for shift in (-1.0, 0.0, 1.0)
    }
    found = permutation_p_values(pairs, seed=1, permutations=20_000)
    assert list(found) == list(pairs)
    for key, (inside, outside) in pairs.items():
        exact = every_permutation(inside, outside)
        assert found[key] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 2e4) + 1e-4)


def test_agrees_with_the_test_done_alone() -> None:
    rng = np.random.default_rng(2)
    pair = rng.normal(0.4, 1, 40), rng.normal(size=60)
    alone = stats.permutation_p_value(*pair, seed=3)
    shared = permutation_p_values({0: pair, 1: pair}, seed=4)
    assert shared[0] == shared[1]
    assert shared[0] == pytest.approx(alone, abs=6 * np.sqrt(alone / 1e4))


def test_the_smallest_p_value_counts_the_identity() -> None:
    pair = np.arange(100.0, 160.0), np.arange(60.0)
    assert permutation_p_values({"x": pair}, seed=0) == {"x": 1 / 10_000}
    ties = np.ones(20), np.ones(30)
    assert permutation_p_values({"x": ties}, seed=0) == {"x": 1.0}


def test_nothing_to_permute_is_refused() -> None:
    assert permutation_p_values({}, seed=0) == {}
    with pytest.raises(TooFewCanaries):
        permutation_p_values({"x": (np.ones(3), np.array([]))}, seed=0)
    with pytest.raises(InvalidValue):
        permutation_p_values({"x": (np.ones(3), np.ones(3))}, seed=0, permutations=0)
