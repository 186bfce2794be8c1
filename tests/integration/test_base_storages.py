"""One adapter on differently stored bases, and compressed bases in whole runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from client.adapter import AdaptedModel, adapt
from client.evaluation import evaluate
from client.examples import Example
from client.model import load_base
from client.quantization import QUANTIZATIONS
from client.training import TrainSettings, train_plain
from shared.lora import initial_factors
from simulations.compress.protocol import Settings
from simulations.compress.running import Order, compress
from simulations.compress.text import generated_text
from simulations.pretrain import DEMO_FOLDER
from simulations.simulate import Result
from tests.integration.scenario import run_small

TEXT = generated_text(3)
ONE_ROUND = (
    "run.rounds=1",
    "clients.population=4",
    "clients.cohort=2.0",
    "data.records=4",
    "audit.canaries=0",
    "evaluation.clients=1",
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in 4 and 8 bits, and without half of its weights."""
    out = tmp_path_factory.mktemp("bases")
    names = ["gptq", "nf4", "torchao-int8", "2:4"]
    settings = Settings(rows=8, length=64)
    compress(Order(base=str(DEMO_FOLDER), methods=names, text=TEXT, settings=settings, out=out))
    return out


def adapted(base: str | Path, quantization: str) -> AdaptedModel:
    loaded = load_base(str(base), quantization=quantization, cache_dequantized=True)
    model = adapt(loaded, r=4, alpha=8, target_modules="all-linear")
    model.load(initial_factors(model.spec, 7))
    return model


def examples(model: AdaptedModel, use: str, count: int) -> list[Example]:
    rows = TEXT.rows(model.base.tokenizer, use, count=count, length=64).numpy()
    return [Example(ids=row, labels=row) for row in rows]


@pytest.mark.slow
def test_an_adapter_trained_on_nf4_serves_every_storage(bases: Path) -> None:
    """Within 0.05 perplexity of where it was trained, and better than no adapter, on each.

    The demo model knows this kind of text by heart: what an adapter can add are the very rows.
    """
    trained = adapted(DEMO_FOLDER, "nf4")
    settings = TrainSettings(local_steps=40, batch_size=16, learning_rate=0.5)
    rows = examples(trained, "training", 16)
    train_plain(trained, rows, settings, rng=np.random.default_rng(0))
    factors = trained.factors()
    found = {}
    places = {
        **{name: (DEMO_FOLDER, name) for name in QUANTIZATIONS},
        "stored nf4": (bases / "nf4", "nf4"),
        "stored torchao-int8": (bases / "torchao-int8", "torchao-int8"),
    }
    for name, (folder, quantization) in places.items():
        model = adapted(folder, quantization)
        with model.disabled():
            before = math.exp(evaluate(model, rows, batch_size=16).loss)
        model.load(factors)
        found[name] = math.exp(evaluate(model, rows, batch_size=16).loss)
        assert found[name] < before - 0.1
    assert max(abs(value - found["nf4"]) for value in found.values()) < 0.05
    assert found["stored nf4"] == found["nf4"]
    assert found["stored torchao-int8"] == found["torchao-int8"]


def weights(result: Result) -> bytes:
    return (result.folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "cache"), [("nf4", "true"), ("nf4", "false"), ("torchao-int8", "true")]
)
def test_a_stored_base_trains_like_the_one_that_is_quantised_on_loading(
    bases: Path, tmp_path: Path, storage: str, cache: str
) -> None:
    """Rounding to nearest is a function of the weights, so both ways give the same adapter."""
    products = "bfloat16" if storage == "nf4" else "float32"
    common = (
        *ONE_ROUND,
        "privacy.mode=example",
        f"model.quantization={storage}",
        f"model.compute_dtype={products}",
        f"performance.cache_dequantized={cache}",
    )
    loaded = run_small(tmp_path / "loaded", common)
    stored = run_small(tmp_path / "stored", [*common, f'model.base="{bases / storage}"'])
    assert weights(loaded) == weights(stored)
    assert stored.summary["compute_dtype"] == products
    assert loaded.summary["base_digest"] != stored.summary["base_digest"]
