"""A device trains in little memory, whatever the server's scenario says, to the same update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.thrift import ROOM, read_model_config, thrift_for
from shared.config import RunConfig
from simulations.basepath import ASSETS
from tests.client.device import scenario

DEMO = read_model_config(ASSETS / "demo")
M135 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "vocab_size": 49152,
}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}


def config(*, max_length: int = 256, **performance: Any) -> RunConfig:
    base = scenario()
    sections = {
        "data": base.data.model_copy(update={"max_length": max_length}),
        "performance": base.performance.model_copy(update=performance),
    }
    return base.model_copy(update=sections)


def test_a_small_model_is_trained_in_large_batches() -> None:
    found = thrift_for(config(max_length=128, physical_batch=64), DEMO, cuda=False)
    assert not found.checkpointing
    assert 16 <= found.performance.physical_batch <= 64


def test_long_sequences_of_a_larger_one_go_one_by_one() -> None:
    for model in (M135, GPT2):
        found = thrift_for(config(physical_batch=64), model, cuda=False)
        assert found.checkpointing
        assert found.performance.physical_batch == 1
        assert found.performance.clipper == "fused"
        assert not found.performance.cache_dequantized


@pytest.mark.parametrize(
    "model", [{}, {"hidden_size": "wide"}, {**M135, "vocab_size": 0}, {**M135, "n_layer": True}]
)
def test_an_unknown_form_is_taken_for_a_large_one(model: dict[str, Any]) -> None:
    found = thrift_for(config(), model, cuda=False)
    assert (found.checkpointing, found.performance.physical_batch) == (True, 1)


def test_the_servers_wish_is_no_order() -> None:
    wishes: dict[str, Any] = {"physical_batch": 2, "device": "cuda", "cache_dequantized": True}
    found = thrift_for(config(max_length=32, **wishes), DEMO, cuda=False).performance
    assert (found.physical_batch, found.device, found.cache_dequantized) == (2, "cpu", False)
    assert thrift_for(config(**wishes), DEMO, cuda=True).performance.device == "cuda"


@given(
    width=st.integers(1, 8192),
    layers=st.integers(1, 100),
    words=st.integers(1, 300_000),
    length=st.integers(1, 8192),
    asked=st.integers(1, 4096),
)
def test_a_batch_keeps_within_the_room(
    width: int, layers: int, words: int, length: int, asked: int
) -> None:
    model = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "vocab_size": words,
    }
    found = thrift_for(config(max_length=length, physical_batch=asked), model, cuda=False)
    batch = found.performance.physical_batch
    assert 1 <= batch <= asked
    # Logits alone, as they are and their gradient, are a lower bound on what a batch takes.
    assert batch == 1 or batch * 2 * 4 * length * words <= ROOM


def test_the_section_is_in_no_digest() -> None:
    said = config(physical_batch=64)
    thrift = thrift_for(said, M135, cuda=False)
    changed = said.model_copy(update={"performance": thrift.performance})
    assert changed.performance != said.performance
    assert changed.digest() == said.digest()


def test_a_model_that_cannot_be_read_is_left_to_the_loader(tmp_path: Path) -> None:
    assert read_model_config(tmp_path) == {}
    (tmp_path / "config.json").write_text("[1]", encoding="ascii")
    assert read_model_config(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps(M135), encoding="ascii")
    assert read_model_config(tmp_path) == M135


@pytest.mark.slow
def test_the_update_is_the_same() -> None:
    from client.adapter import adapt
    from client.data import Record
    from client.model import load_base
    from client.tokenization import make_examples
    from client.training import TrainSettings, train_private
    from shared.lora import initial_factors
    from shared.privacy.noise import NoiseSource

    found = []
    records = [
        Record(text=f"note {number} " + "the visit was short " * number) for number in range(1, 7)
    ]
    for batch, checkpointing in ((64, False), (1, False), (1, True), (4, True)):
        base = load_base(str(ASSETS / "demo"), quantization="int4")
        model = adapt(base, r=2, alpha=4.0, target_modules="all-linear")
        model.load(initial_factors(model.spec, 1))
        model.set_trainable("B")
        if checkpointing:
            model.enable_checkpointing()
        examples = make_examples(records, base.tokenizer, max_length=48, template="plain")
        train_private(
            model,
            examples,
            TrainSettings(local_steps=2, batch_size=4, learning_rate=0.5, physical_batch=batch),
            max_grad_norm=0.5,
            noise_multiplier=1.0,
            sampling_probability=0.8,
            source=NoiseSource.seeded(1, "same"),
        )
        found.append(model.read_vector("B"))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-6)
