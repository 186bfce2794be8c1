"""Who fills a cohort up: drawn as from a list of everybody else, without the list."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.release import choose_others
from shared.seeding import data_rng


def from_a_list(
    rng: np.random.Generator, cohort: list[int], count: int, population: int
) -> list[int]:
    """The plain way: list everybody else and draw."""
    rest = sorted(set(range(population)) - set(cohort))
    return sorted(int(i) for i in rng.choice(rest, size=count, replace=False))


@given(st.data(), st.integers(1, 60), st.integers(0, 2**31))
def test_the_same_clients_as_from_a_list(data: st.DataObject, population: int, seed: int) -> None:
    clients = st.integers(0, population - 1)
    cohort = data.draw(st.lists(clients, unique=True, max_size=population - 1))
    count = data.draw(st.integers(0, population - len(cohort)))
    found = choose_others(data_rng(seed, "t"), cohort, count=count, population=population)
    assert found == from_a_list(data_rng(seed, "t"), cohort, count, population)
    assert not set(found) & set(cohort)
    assert len(set(found)) == count


@pytest.mark.parametrize("count", [3, 2_000])
def test_the_same_clients_of_a_large_population(count: int) -> None:
    """Numpy draws few of many, and many of many, in two ways."""
    cohort = data_rng(1, "cohort").choice(50_000, size=40, replace=False).tolist()
    found = choose_others(data_rng(2, "t"), cohort, count=count, population=50_000)
    assert found == from_a_list(data_rng(2, "t"), cohort, count, 50_000)


def test_a_population_of_a_million_costs_nothing() -> None:
    rng, cohort = data_rng(3, "t"), list(range(0, 1_000_000, 25_000))
    tracemalloc.start()
    try:
        began = time.process_time()
        found = choose_others(rng, cohort, count=60, population=1_000_000)
        seconds = time.process_time() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 60
    assert peak < 100_000
    assert seconds < 0.1
