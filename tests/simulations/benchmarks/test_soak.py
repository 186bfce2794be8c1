"""The soak: a real server and light nodes; the quick form, which takes under a minute."""

from __future__ import annotations

import sys

import pytest

from simulations.benchmarks.soak import QUICK, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_every_part_is_watched_and_each_round_is_there_once() -> None:
    result = run(quick=True)
    parts = {str(row["process"]): row for row in result.rows}
    assert {"superlink", "superexec", "front", "runs", "serverapp"} <= set(parts)
    for row in parts.values():
        # A Python process takes more than 20 MB and, with nothing to do, less than 500.
        assert 20 < float(row["settled_mb"] or 0) < 500
        assert int(row["samples"] or 0) >= QUICK.rounds // 2
    rounds = next(check for check in result.checks if check.unit == "rounds")
    assert rounds.measured == 0
    # A reservation and a commitment for each round.
    assert result.parameters["ledger_entries_verified"] == 2 * QUICK.rounds
