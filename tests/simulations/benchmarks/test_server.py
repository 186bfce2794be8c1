"""The benchmark of a round at the server: what it sums is right, and it runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from simulations.benchmarks import server
from simulations.benchmarks.catalog import benchmark
from simulations.benchmarks.server_cohort import DISTINCT, Cohort, update

SIZE = 257


def test_every_answer_is_in_the_mean_and_none_twice() -> None:
    cohort = Cohort.of("none", SIZE)
    expected = np.mean([update(number, SIZE) for number in range(DISTINCT)], axis=0)
    streamed = cohort.aggregate(2 * DISTINCT)
    assert streamed.count == 2 * DISTINCT
    assert np.allclose(streamed.vector, expected, atol=1e-6)
    assert np.allclose(cohort.stack(2 * DISTINCT), expected, atol=1e-6)
    assert not np.allclose(cohort.stack(3), expected, atol=1e-3)


@pytest.mark.parametrize("case", ["client-central", "client-central, moving clip"])
def test_a_private_mean_is_noised(case: str) -> None:
    cohort = Cohort.of(case, SIZE)
    released = cohort.aggregate(DISTINCT)
    assert released.count == DISTINCT
    assert np.isfinite(released.vector).all()
    assert (released.next_clip is not None) == ("moving" in case)
    # Noise of one clip over the expected 1,000 clients, the updates far below it.
    assert 0.5e-3 < released.vector.std() < 2e-3


@pytest.mark.slow
def test_a_quick_run() -> None:
    assert benchmark("server").SUMMARY == server.SUMMARY
    result = server.run(quick=True)
    cases = [str(row["case"]) for row in result.rows]
    assert cases[:3] == ["mode none", "mode client-central", "mode client-central, moving clip"]
    memory = [row for row in result.rows if "peak_mb" in row]
    assert [row["updates"] for row in memory] == [10, 40, 10]
    assert sum(case.startswith("ledger, mode") for case in cases) == 8
    assert "checkpoint with Adam's moments" in cases
    assert all(float(str(row["seconds"])) > 0.0 for row in result.rows if "seconds" in row)
    assert [check.limit for check in result.checks] == [3.0, 3.0, 3.0, 8.0]
    json.dumps(result.to_dict())


def test_the_promise_is_about_a_thousand_updates_of_a_million() -> None:
    assert (server.FULL.updates, server.FULL.parameters) == (1_000, 1_000_000)
