"""Products in bfloat16: what is compared with what, and what the demo model says of it."""

from __future__ import annotations

import pytest
import torch

from client.training import TrainSettings
from simulations.benchmarks import halfproducts
from simulations.benchmarks.halfproducts import PRODUCTS, compare, measured, neighbours, quality


def test_a_gradient_is_compared_with_the_same_seeds() -> None:
    rows = [
        {"seed": seed, "products": products, "gradients": torch.tensor(values)}
        for seed, products, values in (
            (0, "float32", [[3.0, 4.0], [1.0, 0.0]]),
            (0, "bfloat16", [[3.0, 4.5], [1.0, 0.0]]),
            (1, "float32", [[1.0, 0.0], [0.0, 2.0]]),
            (1, "bfloat16", [[1.0, 0.0], [0.0, 1.0]]),
        )
    ]
    assert [row["gradient_error"] for row in compare(rows)] == pytest.approx([0, 0.1, 0, 0.5])


@pytest.mark.slow
def test_quality_is_the_same_and_gradients_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(local_steps=2, batch_size=16, learning_rate=0.5)
    monkeypatch.setattr(halfproducts, "_SETTINGS", settings)
    exact, half = compare([quality(kind, 0) for kind in PRODUCTS])
    for name in ("perplexity", "perplexity_trained", "perplexity_private"):
        assert half[name] == pytest.approx(exact[name], abs=0.05)
    assert 1e-3 < half["gradient_error"] < 0.1


@pytest.mark.slow
def test_neighbours_move_nothing_of_an_example_that_goes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(halfproducts, "_DRAWS", 1)
    assert neighbours("bfloat16", alone=True)["moved"] < 1e-9
    assert neighbours("float32", alone=False)["moved"] < 1e-4


@pytest.mark.slow
def test_a_shape_is_timed_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halfproducts, "_TIMES", 1)
    monkeypatch.setattr(halfproducts, "_LENGTH", 8)
    (rows,) = measured("1M", seeds=0)
    assert [(row["cache"], row["products"]) for row in rows] == [
        (cache, products) for cache in ("yes", "no") for products in PRODUCTS
    ]
    assert all(row["seconds_plain"] > 0 and row["seconds_clipped"] > 0 for row in rows)
