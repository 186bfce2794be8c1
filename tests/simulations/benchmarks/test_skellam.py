from __future__ import annotations

import pytest

from shared.privacy.accountant import epsilon_of
from shared.privacy.events import NeighboringRelation, SkellamEvent
from simulations.benchmarks import skellam
from simulations.benchmarks.protocol import Benchmark


@pytest.mark.slow
def test_what_it_reports_meets_the_target() -> None:
    module: Benchmark = skellam
    result = module.run(quick=True)
    assert result.passed
    calibrated = [row for row in result.rows if "skellam_rdp" in row]
    assert len(calibrated) == 2
    row = calibrated[0]
    event = SkellamEvent(
        noise_multiplier=float(str(row["skellam_reported"])), grid=int(str(row["grid"])), count=20
    )
    spent = epsilon_of(event, delta=1e-5, relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    assert 0.998 * 8.0 <= spent <= 8.0
    for row in calibrated:
        assert 1.0 <= float(str(row["rdp_over_gaussian_rdp"])) <= 1.01
        assert 1.0 <= float(str(row["over_gaussian_pld"])) <= 1.002
        assert float(str(row["skellam_rdp"])) > 1.03 * float(str(row["skellam_reported"]))
