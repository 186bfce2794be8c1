"""A process that trains by an exported step where torch and its kind cannot be imported.

``python -m tests.client.edge.untorched FOLDER`` prints the adapter after training as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

BLOCKED = {"torch", "transformers", "peft", "opacus", "bitsandbytes", "onnx", "onnx_ir"}


class Wall:
    """Refuses to find the packages that an edge device does not have."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        del path, target
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name)
        return None


def main(folder: Path) -> None:
    """Train and print."""
    sys.meta_path.insert(0, Wall())

    import numpy as np

    from client.edge.adapter import EdgeAdapter
    from client.edge.engine import OnnxStep
    from client.edge.program import load_step
    from client.edge.training import train_private
    from client.examples import Example
    from client.stepping import TrainSettings
    from shared.lora import initial_factors
    from shared.privacy.noise import NoiseSource

    step = load_step(folder)
    adapter = EdgeAdapter(OnnxStep(folder, step), step.trained)
    adapter.load(step.adapter.flatten(initial_factors(step.adapter, 7)), "AB")
    rows = [np.arange(3, 3 + size, dtype=np.int64) for size in (4, 7, 9, 12)]
    noised = train_private(
        adapter,
        [Example(ids=ids, labels=ids.copy()) for ids in rows],
        TrainSettings(local_steps=3, batch_size=2, learning_rate=0.1),
        max_grad_norm=0.5,
        noise_multiplier=0.5,
        sampling_probability=0.5,
        source=NoiseSource.seeded(3, "edge"),
    )
    found = {name.split(".")[0] for name in sys.modules} & BLOCKED
    print(json.dumps({"noised": noised, "found": sorted(found), "b": adapter.read().tolist()}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
