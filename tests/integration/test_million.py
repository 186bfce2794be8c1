"""A million registered clients, a hundred a round: what they cost above the base model."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.benchmarks.engine_runs import Work, in_child

RUNS = "simulations.benchmarks.engine_runs"
ABOVE_BASE_MB = 200.0
FLAT_MB = 10.0


@pytest.mark.slow
def test_a_million_clients_cost_less_than_two_hundred_megabytes_above_the_base() -> None:
    """Each run is a process of its own; sizes are the kernel's, at most and after each round."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the kernel does not say how large a process was")
    work = Work(what="alone", population=1_000_000, cohort=100, rounds=3, records=1, max_length=32)
    base = in_child(RUNS, Work(what="base", population=10, cohort=10, rounds=1))
    found = in_child(RUNS, work)
    assert len(found["answered"]) == 3
    assert min(found["answered"]) > 50
    assert found["memory"]["VmHWM"] - base["memory"]["VmRSS"] < ABOVE_BASE_MB
    assert found["resident"][-1] - found["resident"][0] < FLAT_MB
