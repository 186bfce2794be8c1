"""What the README promises of the quickstart without a trusted server, measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.promises import NOISE_OF_ONE_RUN, QUICKSTART, SOME_CLIENTS, simulate


@pytest.mark.slow
@pytest.mark.timeout(1400)
def test_a_distributed_run_learns_as_much_as_one_with_a_trusted_server(tmp_path: Path) -> None:
    found = simulate(tmp_path, "quickstart-distributed", *SOME_CLIENTS)
    assert found["privacy"]["mode"] == "client-distributed"
    assert found["privacy"]["epsilon"] <= 8.0
    assert found["privacy"]["delta"] == 5e-4
    assert found["privacy"]["server_epsilon"] is not None
    assert abs(found["loss_after"] - QUICKSTART) <= NOISE_OF_ONE_RUN
    assert found["audit"]["verdict"] != "violation"
