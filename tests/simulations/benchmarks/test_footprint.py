"""The benchmark of a node's footprint runs, and its model has the shape that it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from simulations.benchmarks import footprint
from simulations.benchmarks.catalog import benchmarks
from simulations.benchmarks.footprintmodel import M135, SMALL, scenario, write_base


def test_the_large_shape_is_that_of_smollm2_135m() -> None:
    # The number of its model card, to the weight.
    assert M135.parameters == 134_515_008


def test_the_model_is_what_its_shape_says(tmp_path: Path) -> None:
    from client.adapterspec import adapter_spec
    from client.model import load_base

    write_base(tmp_path / "base", SMALL)
    base = load_base(str(tmp_path / "base"), quantization="int8")
    loaded = load_base(str(tmp_path / "base"))
    assert sum(p.numel() for p in loaded.model.parameters()) == SMALL.parameters
    config = scenario("int8")
    spec = adapter_spec(
        base, r=config.lora.r, alpha=config.lora.alpha, target_modules=config.lora.target_modules
    )
    assert spec.size(config.trained_kinds) == SMALL.adapter_size


def test_it_is_listed() -> None:
    assert "footprint" in benchmarks()
    assert "footprintmodel" not in benchmarks()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's process table")
def test_a_quick_run() -> None:
    result = footprint.run(quick=True)
    parts = {str(row["part"]): row for row in result.rows}
    node = parts["node, no worker"]
    worker = parts["worker, warm and at rest"]
    assert 10.0 < float(node["rss_mb"] or 0) < footprint.NODE_MB
    assert float(node["rss_mb"] or 0) < float(worker["rss_mb"] or 0)
    assert float(worker["pss_mb"] or 0) <= float(worker["rss_mb"] or 0)
    assert {
        check.name for check in result.checks if "start" not in check.name and check.passed
    } == {
        "node before torch",
        "at rest",
        "while training, node and worker",
    }
    json.dumps(result.to_dict())
