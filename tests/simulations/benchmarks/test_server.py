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


@pytest.mark.parametrize("case", ["client-central", "moving clip"])
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
    assert cases[:3] == [
        "none, 40 updates",
        "client-central, 40 updates",
        "moving clip, 40 updates",
    ]
    assert len(set(cases)) == len(cases)
    assert sum(case.startswith("memory, ") for case in cases) == 3
    assert sum(case.startswith("ledger, ") for case in cases) == 8
    assert "checkpoint with Adam's moments" in cases
    assert result.columns() == ("case", "times", "median", "least", "most", "unit")
    for row in result.rows:
        least, median, most = (float(str(row[name])) for name in ("least", "median", "most"))
        assert least <= median <= most
        assert row["unit"] == "MB" or least > 0.0
    assert [check.limit for check in result.checks] == [3.0, 3.0, 3.0, 8.0]
    json.dumps(result.to_dict())


def test_the_promise_is_about_a_thousand_updates_of_a_million() -> None:
    assert (server.FULL.updates, server.FULL.parameters) == (1_000, 1_000_000)
