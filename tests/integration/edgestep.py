"""An exported step of the embedded model, made once, and a device that holds it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from client.edge.export import export_step
from client.edge.program import StepManifest
from client.edge.terms import terms_of
from shared.config import RunConfig
from simulations.assemble import load_model
from tests.client.device import scenario
from tests.integration.device import BASE, Device

LORA = {"target_modules": ("q_proj",)}


def edge_scenario(mode: str, **privacy: object) -> RunConfig:
    """Return a scenario of one mode with an adapter that is quick to export."""
    config = scenario(mode, **privacy)
    return config.model_copy(update={"lora": config.lora.model_copy(update=LORA)})


@lru_cache(maxsize=2)
def exported(runtime: str = "onnx") -> tuple[Path, StepManifest]:
    """Export the step, without a clip inside, so that every mode can use it."""
    config = edge_scenario("example")
    model = load_model(config, base_dir=BASE)
    terms = terms_of(config)
    model.set_trainable(terms.trained)
    folder = Path(mkdtemp(prefix="fedslm-step-")) / "step"
    done = export_step(model, folder, length=terms.length, max_grad_norm=None, runtime=runtime)
    return folder, done.manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeDevice(Device):
    """A device whose base is an exported step."""

    digest: str = ""
    runtime: str = "onnx"

    def node(self) -> dict[str, str | int | float | bool]:
        """Return its node configuration."""
        # Not super(): a dataclass with slots is another class than the one that is written here.
        return {**Device.node(self), "runtime": self.runtime, "step-digest": self.digest}


def on_the_edge(device: Device, runtime: str = "onnx") -> EdgeDevice:
    """Return the same device with the exported step in place of the base model."""
    folder, manifest = exported(runtime)
    return EdgeDevice(
        folder=device.folder,
        policy=device.policy,
        base=folder,
        digest=manifest.digest,
        runtime=runtime,
    )
