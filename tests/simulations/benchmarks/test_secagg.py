from __future__ import annotations

from simulations.benchmarks import secagg
from simulations.benchmarks.catalog import benchmark


def test_the_quick_run_keeps_the_protocol_and_its_promises() -> None:
    """The run itself compares every sum with the plain one."""
    assert benchmark("secagg").SUMMARY == secagg.SUMMARY
    result = secagg.run(quick=True)
    assert result.passed
    assert [check.limit for check in result.checks] == [5.0, 2.0]
    small, sparse = result.rows
    assert (small["degree"], sparse["degree"]) == (9, 34)
    # beside the vector: five envelopes, keys, signatures, and nine neighbours' shares twice
    assert int(str(small["upload_bytes"])) - 4 * (1 << 14) == small["upload_overhead_bytes"] == 1701
    assert int(str(small["download_bytes"])) > 0


def test_the_promise_is_about_a_hundred_clients_and_a_million_words() -> None:
    promised = [case for case in secagg.FULL if case.promised]
    assert {(case.clients, case.dropouts, case.dimension) for case in promised} == {
        (100, 5, 1 << 20)
    }
