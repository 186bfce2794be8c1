from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shared.errors import ConflictingSettings, InvalidValue, QuorumNotReached
from shared.privacy.secagg.graph import (
    GraphParameters,
    NeighbourGraph,
    parameters,
    require_kept,
    required_survivors,
    tail_bound,
    tolerated_corrupt,
)

SPARSE = [(64, 0.9, 0.9), (80, 0.9, 0.9), (100, 0.8, 0.8), (500, 0.9, 0.9), (1000, 0.95, 0.9)]


def graph_of(n: int, degree: int, seed: int = 0) -> NeighbourGraph:
    return NeighbourGraph.drawn(range(n), degree, seed.to_bytes(32, "big"))


def components(graph: NeighbourGraph, members: set[int]) -> int:
    """Count connected components by walking; knows nothing of rings."""
    left, found = set(members), 0
    while left:
        found += 1
        queue = [left.pop()]
        while queue:
            near = set(graph.neighbours(queue.pop())) & left
            left -= near
            queue.extend(near)
    return found


@pytest.mark.parametrize(("n", "degree"), [(3, 2), (4, 3), (6, 5), (64, 26), (65, 64), (81, 4)])
def test_the_graph_is_regular_symmetric_and_connected(n: int, degree: int) -> None:
    graph = graph_of(n, degree)
    assert sorted(graph.order) == list(range(n))
    for client in range(n):
        near = graph.neighbours(client)
        assert len(near) == len(set(near)) == degree
        assert near == tuple(sorted(near))
        assert client not in near
        assert all(client in graph.neighbours(other) for other in near)
        points = sorted(graph.point(client, other) for other in near)
        assert points == list(range(1, degree + 1))
    assert components(graph, set(range(n))) == 1


def test_the_graph_is_the_same_for_all_and_changes_with_the_transcript() -> None:
    assert graph_of(80, 10).order == graph_of(80, 10).order
    orders = {graph_of(80, 10, seed).order for seed in range(50)}
    assert len(orders) == 50


@pytest.mark.statistical
def test_every_order_of_the_ring_comes_equally_often() -> None:
    """Chi-square over the 24 orders of four clients, 4,800 fixed seeds: deterministic.

    Under uniform orders the statistic is below the bound with probability 1 - 1e-6.
    """
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(4800):
        counts[tuple(graph_of(4, 3, seed).order)] += 1
    statistic = sum((found - 200) ** 2 / 200 for found in counts.values())
    assert statistic < stats.chi2.isf(1e-6, 23)


@settings(max_examples=60)
@given(st.data())
def test_the_loneliest_member_is_counted_right(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 40))
    degree = data.draw(st.sampled_from([*range(2, n - 1, 2), n - 1]))
    graph = graph_of(n, degree, data.draw(st.integers(0, 9)))
    members = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    slow = min(len(set(graph.neighbours(client)) & members) for client in members)
    assert graph.fewest_neighbours(members) == slow


@given(st.integers(1, 60), st.data())
def test_tail_bounds_agree_with_another_hypergeometric(
    population: int, data: st.DataObject
) -> None:
    """Oracle: scipy's survival function; the bound holds and one less does not."""
    marked = data.draw(st.integers(0, population))
    draws = data.draw(st.integers(0, population))
    events = data.draw(st.integers(1, 100))
    bits = data.draw(st.integers(1, 25))
    found = tail_bound(population, marked, draws, events=events, bits=bits)
    law = stats.hypergeom(population, marked, draws)
    assert events * law.sf(found) <= 2.0**-bits * (1 + 1e-9)
    assert events * law.sf(found - 1) > 2.0**-bits * (1 - 1e-9)


def test_tail_bounds_are_exact_far_below_float() -> None:
    """Oracle: the tail of 2**-150 as a rational, counted from the other side."""
    population, marked, draws, bits = 400, 80, 100, 140
    found = tail_bound(population, marked, draws, events=1, bits=bits)
    total = math.comb(population, draws)

    def tail(m: int) -> Fraction:
        ways = sum(
            math.comb(marked, i) * math.comb(population - marked, draws - i) for i in range(m + 1)
        )
        return 1 - Fraction(ways, total)

    assert tail(found) <= Fraction(1, 2**bits) < tail(found - 1)


@pytest.mark.parametrize("n", [*range(3, 64), 64, 70, 80, 99, 100, 128, 200, 333, 1000])
@pytest.mark.parametrize(("h", "s"), [(1.0, 0.8), (0.9, 0.9), (0.8, 0.8), (0.67, 0.75)])
def test_parameters_satisfy_the_inequalities(n: int, h: float, s: float) -> None:
    """Written from the module's text with scipy's tails (good to 1e-12, so a bit is left over)."""
    try:
        found = parameters(n, h, s)
    except ConflictingSettings:
        assert n < 20, "only small cohorts suffer from rounding"
        return
    assert found.threshold >= 2
    assert found.corrupt == math.floor((1 - Fraction(str(h))) * n)
    assert found.required == math.ceil(Fraction(str(s)) * n)
    assert 2 * found.quorum > n + found.corrupt
    assert found.quorum <= found.required
    assert found.honest_survivors == found.required - found.corrupt >= 2
    if found.complete:
        assert 2 * found.threshold > (n - 1) + found.corrupt
        assert found.threshold <= found.required - 1
    else:
        around = stats.hypergeom(n - 1, found.corrupt, found.degree)
        after = stats.hypergeom(n - 1, found.corrupt, found.degree // 2)
        gone = stats.hypergeom(n - 1, n - found.required, found.degree)
        limit = 2.0**-119 / (2 * n)
        assert around.sf(2 * found.threshold - found.degree - 1) <= limit
        assert after.sf(found.threshold - found.degree // 2 - 1) <= limit
        assert n * gone.sf(found.degree - found.threshold) <= 2.0**-39


@pytest.mark.parametrize(("n", "h", "s"), SPARSE)
def test_a_sparse_degree_is_the_smallest_that_will_do(n: int, h: float, s: float) -> None:
    """Two neighbours fewer break one of the three bounds, by scipy's tails."""
    found = parameters(n, h, s)
    assert not found.complete
    degree = found.degree - 2
    around = stats.hypergeom(n - 1, found.corrupt, degree)
    after = stats.hypergeom(n - 1, found.corrupt, degree // 2)
    gone = stats.hypergeom(n - 1, n - found.required, degree)
    limit = 2.0**-120 / (2 * n)
    works = [
        t
        for t in range(degree // 2 + 1, degree + 1)
        if around.sf(2 * t - degree - 1) <= limit
        and after.sf(t - degree // 2 - 1) <= limit
        and n * gone.sf(degree - t) <= 2.0**-40
    ]
    assert works == []


def test_with_a_third_corrupt_the_threshold_is_above_two_thirds_of_the_holders() -> None:
    for n in range(10, 64):
        found = parameters(n, 0.6667, 0.9)
        assert found.threshold > 2 * found.degree / 3 - 1
        assert 2 * found.threshold > found.degree + found.corrupt


@pytest.mark.statistical
def test_random_dropouts_and_collusion_stay_within_the_bounds() -> None:
    """Monte Carlo, 150 fixed draws of 200 clients; the bounds allow 2**-40 each."""
    n, h, s = 200, 0.9, 0.9
    bounds, rng = parameters(n, h, s), np.random.default_rng(5)
    graph = graph_of(n, bounds.degree)
    for _ in range(150):
        order = rng.permutation(n).tolist()
        alive = set(order[n - bounds.required :])
        corrupt = set(rng.permutation(n)[: bounds.corrupt].tolist())
        assert graph.fewest_neighbours(alive) >= bounds.threshold
        most = max(len(corrupt & set(graph.neighbours(client))) for client in range(0, n, 7))
        assert 2 * (bounds.threshold - most) > bounds.degree - most
        assert components(graph, alive - corrupt) == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_dropouts_that_clients_accept_disconnects_the_honest(seed: int) -> None:
    """An adversary who sees the ring cuts as deep as the check allows, at random places.

    It removes honest clients one by one, next to the last ones, as long as everybody left keeps
    ``threshold`` neighbours; the honest survivors stay connected, though the number of survivors
    is not limited here at all.
    """
    n = 80
    bounds, rng = parameters(n, 0.9, 0.9), np.random.default_rng(seed)
    graph = graph_of(n, bounds.degree, seed)
    corrupt = set(rng.permutation(n)[: bounds.corrupt].tolist())
    alive, start = set(range(n)), int(rng.integers(n))
    for step in (*range(n), *(-i for i in range(n))):
        victim = graph.order[(start + step) % n]
        left = alive - {victim}
        if victim not in corrupt and graph.fewest_neighbours(left) >= bounds.threshold:
            alive = left
    assert len(alive) < n
    assert components(graph, alive - corrupt) == 1


def test_a_lower_threshold_would_let_the_server_cut_the_ring() -> None:
    """The rule is not idle: two gaps of half a degree cut the ring, and k/2 neighbours remain."""
    n, degree = 80, 34
    graph = graph_of(n, degree)
    gone = {graph.order[i] for i in (*range(17), *range(40, 57))}
    alive = set(range(n)) - gone
    assert components(graph, alive) == 2
    assert graph.fewest_neighbours(alive) == degree // 2
    assert parameters(n, 0.9, 0.9).threshold > degree // 2


@pytest.mark.parametrize(
    ("n", "h", "s"),
    [
        (2, 1.0, 1.0),
        (1, 1.0, 1.0),
        (10, 0.8, 0.6),
        (100, 0.8, 0.6),
        (100, 0.5, 0.75),
        (4, 0.7, 0.7),
    ],
)
def test_impossible_wishes_are_refused(n: int, h: float, s: float) -> None:
    with pytest.raises(ConflictingSettings, match=rf"clients={n}, .* must survive"):
        parameters(n, h, s)


@pytest.mark.parametrize(
    ("n", "h", "s"), [(0, 0.8, 0.8), (10, 0.0, 0.8), (10, 0.8, math.nan), (10, 1.1, 0.8)]
)
def test_parameters_refuse_what_is_out_of_range(n: int, h: float, s: float) -> None:
    with pytest.raises(InvalidValue):
        parameters(n, h, s)


@pytest.mark.parametrize("n", [10, 20, 30, 70, 100, 1000, 12345])
def test_fractions_are_taken_as_they_are_written(n: int) -> None:
    """0.9 means nine tenths: (1 - 0.9) * 100 is 9.999... in floats, and one client too few."""
    assert tolerated_corrupt(n, 0.9) == n // 10
    assert required_survivors(n, 0.7) == -(-7 * n // 10)


def test_kept_members_are_counted_and_named() -> None:
    bounds = GraphParameters(clients=8, degree=4, threshold=3, required=6, corrupt=0, quorum=5)
    graph = graph_of(8, 4)
    require_kept(graph, bounds, graph.order[:7], phase="share")
    with pytest.raises(QuorumNotReached, match=r"phase=share: 5 of 8 .* at least 6"):
        require_kept(graph, bounds, graph.order[:5], phase="share")
    with pytest.raises(QuorumNotReached, match="phase=mask: a client has 2 of its 4 neighbours"):
        require_kept(graph, bounds, graph.order[:6], phase="mask")
