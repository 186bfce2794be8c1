"""Exported steps of tiny models, made once, and the models they were made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.adapter import AdaptedModel, adapt
from client.edge.engine import StepEngine
from client.edge.engines import open_engine
from client.edge.export import Exported, export_step
from client.model import load_base
from shared.lora import Vector, initial_factors
from tests.client.conftest import MakeFolder

LENGTH = 16
CLIP = 0.5
CHANGES: dict[str, dict[str, Any]] = {"gpt2": {"n_layer": 1}}
TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "down_proj"], "qwen2": ["v_proj"]}


@dataclass(frozen=True)
class Step:
    """An exported step beside the folder of its model."""

    family: str
    folder: Path
    base: Path
    exported: Exported
    kinds: str

    def engine(self) -> StepEngine:
        return open_engine(self.folder, self.exported.manifest)

    def model(self) -> AdaptedModel:
        return adapted_model(self.family, self.base, self.kinds)


def adapted_model(family: str, base: Path, kinds: str) -> AdaptedModel:
    """Return a tiny model with an adapter that is not zero."""
    model = adapt(load_base(str(base)), r=4, alpha=8, target_modules=TARGETS[family])
    model.load_vector(start(model), "AB")
    model.set_trainable(kinds)
    return model


def start(model: AdaptedModel) -> Vector:
    """Return the factors to start from."""
    factors = initial_factors(model.spec, 7)
    rng = np.random.default_rng(8)
    for factor in model.spec.of_kind("B"):
        factors[factor.name] = 0.1 * rng.standard_normal(factor.shape).astype(np.float32)
    return model.spec.flatten(factors)


MakeStep = Callable[..., Step]


@pytest.fixture(scope="session")
def make_step(model_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> MakeStep:
    """Return a function that exports the step of a family, once for equal arguments."""
    root = tmp_path_factory.mktemp("steps")
    made: dict[str, Step] = {}

    def make(
        family: str,
        *,
        kinds: str = "AB",
        clip: float | None = CLIP,
        quantization: str = "none",
        runtime: str = "onnx",
    ) -> Step:
        key = f"{family}-{kinds}-{clip}-{quantization}-{runtime}"
        if key not in made:
            base = model_folder(family, **CHANGES.get(family, {"num_hidden_layers": 1}))
            model = adapted_model(family, base, kinds)
            exported = export_step(
                model,
                root / key,
                length=LENGTH,
                max_grad_norm=clip,
                quantization=quantization,
                runtime=runtime,
            )
            made[key] = Step(family, root / key, base, exported, kinds)
        return made[key]

    return make
