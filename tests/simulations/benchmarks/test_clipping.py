from __future__ import annotations

import pytest

from simulations.benchmarks import clipping
from simulations.benchmarks.protocol import Benchmark


@pytest.mark.slow
def test_a_quick_training_moves_one_clip_and_not_the_other() -> None:
    module: Benchmark = clipping
    result = module.run(quick=True)
    fixed, moved = result.rows
    assert (fixed["clipping"], moved["clipping"]) == ("fixed", "quantile")
    assert fixed["first_clip"] == fixed["last_clip"] == moved["first_clip"] == 5.0
    assert moved["last_clip"] != 5.0
    assert fixed["noise_multiplier"] == moved["noise_multiplier"]
    assert len(result.checks) == 1
