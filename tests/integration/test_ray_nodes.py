"""Flower's engine on a Ray cluster that runs already: the way to several machines."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.integration.scenario import run_small

PLAIN = ["privacy.mode=none", "clients.population=6", "clients.cohort=4.0"]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    # Ray's own: it opens /dev/null for each process of a cluster, and leaves closing it to chance.
    "ignore:unclosed file <_io:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_two_ray_nodes_give_the_adapter_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node has one core, so each has one of two actors; RAY_ADDRESS says where they are."""
    ray = pytest.importorskip("ray", reason="engine flower needs the extra fedslm[ray]")
    from ray.cluster_utils import Cluster

    here = run_small(tmp_path / "here", PLAIN)
    cluster: Any = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        there = run_small(tmp_path / "there", [*PLAIN, "run.engine=flower"])
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        actors = ray._private.state.actors().values()
        homes = {actor["Address"]["NodeID"] for actor in actors}
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    finally:
        ray.shutdown()
        cluster.shutdown()
        del cluster
        gc.collect()
    assert len(alive) == 2
    assert homes == alive
    a = load_file(here.folder / "adapter" / "adapter_model.safetensors")
    b = load_file(there.folder / "adapter" / "adapter_model.safetensors")
    assert any(np.abs(value).max() > 0 for name, value in a.items() if "lora_B" in name)
    for name, value in a.items():
        assert np.allclose(value, b[name], atol=1e-5), name
