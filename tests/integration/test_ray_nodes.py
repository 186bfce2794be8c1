"""Flower's engine on a Ray cluster that runs already: the way to several machines."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import load_file

from shared.errors import UsageError
from simulations.flower_engine import run_on_flower
from tests.integration.scenario import run_small

PLAIN = ["privacy.mode=none", "clients.population=6", "clients.cohort=4.0"]
# Ray's own: it opens /dev/null for each process of a cluster, and leaves closing it to chance.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:unclosed file <_io:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ),
]


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


class _ReportGpus:
    """A ClientApp that leaves a file with the GPUs that its process sees."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, message: Message, context: Context) -> Message:
        del context
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        (self._folder / f"{os.getpid()}.txt").write_text(gpus, encoding="ascii")
        # Long enough that no actor answers for another.
        time.sleep(1.0)
        return Message(RecordDict(), reply_to=message)


def _reporting(folder: Path) -> ClientApp:
    app = ClientApp()
    app.query()(_ReportGpus(folder))
    return app


def _asking(nodes: int) -> ServerApp:
    """Return a ServerApp that waits for all nodes and asks each of them once."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        del context
        while len(known := list(grid.get_node_ids())) < nodes:
            time.sleep(0.1)
        grid.send_and_receive([Message(RecordDict(), node, "query") for node in known])

    app.main()(main)
    return app


def test_every_actor_sees_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that claims two GPUs: Ray deals them without looking whether they are there."""
    pytest.importorskip("ray", reason="engine flower needs the extra fedslm[ray]")
    from ray.cluster_utils import Cluster

    claimed = {"num_cpus": 4, "num_gpus": 2, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=claimed)
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with pytest.raises(UsageError, match="No machine has 1 cores and 3 GPUs"):
            run_on_flower(
                _asking(1), _reporting(tmp_path), population=1, client_cpus=1.0, client_gpus=3.0
            )
        run_on_flower(
            _asking(2), _reporting(tmp_path), population=2, client_cpus=1.0, client_gpus=1.0
        )
    finally:
        cluster.shutdown()
        del cluster
        gc.collect()
    seen = sorted(path.read_text(encoding="ascii") for path in tmp_path.iterdir())
    assert seen == ["0", "1"]


def test_more_than_this_machine_has_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="engine flower needs the extra fedslm[ray]")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="No machine has 10000 cores and 0 GPUs"):
        run_on_flower(_asking(1), _reporting(tmp_path), population=1, client_cpus=10_000.0)
