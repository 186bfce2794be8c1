"""Devices without torch in a real fleet: the exported step, and a wall against what it replaces."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from client.edge.export import export_step
from client.edge.program import StepManifest
from client.home import DeviceHome
from client.keyring import load_identity
from server.home import ServerHome
from shared.configfile import resolve
from simulations.assemble import load_model
from tests.client.device import CLIENT, EXAMPLE, SECURE, write_policy
from tests.client.edge.untorched import BLOCKED
from tests.faults.fleet import RealNode
from tests.integration.device import BASE, demo_digest
from tests.integration.fleetnode import make_fleet_device
from tests.server.fleetkit import ROOT

WALL = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Wall())
"""


@lru_cache(maxsize=1)
def wide_step(tables: str) -> tuple[Path, StepManifest]:
    """Export a step of both factors without a clip, which serves every policy; once."""
    import json

    config = resolve(json.loads(tables), source="test").config
    model = load_model(config, base_dir=BASE)
    model.set_trainable("AB")
    folder = Path(mkdtemp(prefix="fedslm-step-")) / "step"
    length = config.data.max_length
    return folder, export_step(model, folder, length=length, max_grad_norm=None).manifest


@dataclass
class EdgeNode(RealNode):
    """A node in whose processes torch and its company cannot be imported."""

    def start(self, *before: str, **variables: str) -> None:
        """Start the node behind the wall."""
        wall = self.device.path.parent / "wall"
        wall.mkdir(exist_ok=True)
        text = WALL.format(blocked=sorted(BLOCKED))
        (wall / "sitecustomize.py").write_text(text, encoding="utf-8")
        path = os.pathsep.join([str(wall), str(ROOT)])
        RealNode.start(self, *before, **{"PYTHONPATH": path, **variables})


def edge_node(server: ServerHome, folder: Path, step: tuple[Path, StepManifest]) -> EdgeNode:
    """Enroll a device that holds an exported step."""
    device = make_fleet_device(server, folder, folder.name)
    shutil.copytree(step[0], folder / "step")
    changes = {"runtime": "onnx", "step": step[1].digest, "base": str(folder / "step")}
    device.node_file.unlink()
    config = device.config.model_copy(update=changes)
    return EdgeNode(server, DeviceHome.create(device.path, config))


def public_key(node: RealNode) -> str:
    """Return the key of a device for rosters."""
    return load_identity(node.device.state).public_key.hex()


def allow(node: RealNode, unit: str, **changes: Any) -> None:
    """Write the policy of a device: what it allows of one privacy unit, or without any."""
    said: dict[str, Any] = {
        "base_models": [demo_digest()],
        "aggregation": ["ffa", "fedavg", "rolora"],
        "max_rounds": 100,
        "votes": True,
    }
    if unit == "none":
        del said["votes"]
        said["aggregation"] = ["fedavg", "fedex"]
        write_policy(node.device.path, "none", **said, **changes)
        return
    if unit == "example":
        write_policy(
            node.device.path, "example", **said, example=EXAMPLE | {"max_epsilon": 100.0}, **changes
        )
        return
    write_policy(
        node.device.path,
        "client-distributed",
        **said,
        modes=["client-central", "client-distributed"],
        client=CLIENT | {"max_epsilon": 1000.0},
        secure_aggregation=SECURE | {"min_cohort": 3, "honest_fraction": 0.6},
        **changes,
    )
