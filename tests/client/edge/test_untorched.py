"""A process without torch trains to the adapter that torch trains to."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from client.training import Example, TrainSettings, train_private
from shared.lora import initial_factors
from shared.privacy.noise import NoiseSource
from tests.client.edge.conftest import MakeStep


@pytest.mark.slow
def test_training_where_torch_cannot_be_imported(make_step: MakeStep) -> None:
    step = make_step("gpt2", kinds="B", clip=None)
    told = subprocess.run(
        [sys.executable, "-m", "tests.client.edge.untorched", str(step.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["found"] == []
    model = step.model()
    model.load(initial_factors(model.spec, 7))
    rows = [np.arange(3, 3 + size, dtype=np.int64) for size in (4, 7, 9, 12)]
    noised = train_private(
        model,
        [Example(ids=ids, labels=ids.copy()) for ids in rows],
        TrainSettings(local_steps=3, batch_size=2, learning_rate=0.1),
        max_grad_norm=0.5,
        noise_multiplier=0.5,
        sampling_probability=0.5,
        source=NoiseSource.seeded(3, "edge"),
    )
    truth = model.read_vector("B")
    assert found["noised"] == noised == 3
    assert np.linalg.norm(np.array(found["b"]) - truth) <= 1e-5 * np.linalg.norm(truth)
