"""Products in bfloat16: what is compared with what, and what the demo model says of it."""

from __future__ import annotations

import pytest
import torch

from client.training import TrainSettings
from simulations.benchmarks import halfproducts
from simulations.benchmarks.halfproducts import compare, measure


def test_a_gradient_is_compared_with_the_same_storages() -> None:
    rows = [
        {"storage": storage, "products": products, "gradients": torch.tensor(values)}
        for storage, products, values in (
            ("none", "float32", [[3.0, 4.0], [1.0, 0.0]]),
            ("none", "bfloat16", [[3.0, 4.5], [1.0, 0.0]]),
            ("nf4", "float32", [[1.0, 0.0], [0.0, 2.0]]),
            ("nf4", "bfloat16", [[1.0, 0.0], [0.0, 1.0]]),
        )
    ]
    assert [row["gradient_error"] for row in compare(rows)] == pytest.approx([0, 0.1, 0, 0.5])


@pytest.mark.slow
def test_quality_is_the_same_and_gradients_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(local_steps=2, batch_size=16, learning_rate=0.5)
    monkeypatch.setattr(halfproducts, "_SETTINGS", settings)
    monkeypatch.setattr(halfproducts, "_TIMES", 1)
    exact, half = compare([measure("nf4", kind) for kind in ("float32", "bfloat16")])
    assert half["perplexity"] == pytest.approx(exact["perplexity"], abs=0.05)
    assert half["perplexity_trained"] == pytest.approx(exact["perplexity_trained"], abs=0.05)
    assert 1e-3 < half["gradient_error"] < 0.1
