"""The shape of a base from its configuration: what the loaded model has."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.adapterspec import adapter_spec
from client.baseshape import read_shape
from client.model import load_base
from client.quantization import linear_modules, quantized_storage
from shared import errors
from shared.baseshape import stored_bytes, with_rank
from simulations.basepath import ASSETS
from tests.shared.deviceshapes import DEMO

DEMO_FOLDER = str(ASSETS / "demo")


def test_the_demo_models_shape_and_adapter() -> None:
    shape, spec = read_shape(DEMO_FOLDER, r=4, alpha=8.0, target_modules="all-linear")
    assert shape == DEMO
    loaded = load_base(DEMO_FOLDER)
    assert shape.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert spec == adapter_spec(loaded, r=4, alpha=8.0, target_modules="all-linear")
    assert with_rank(spec, 7) == adapter_spec(loaded, r=7, alpha=14.0, target_modules="all-linear")


def test_another_rank_keeps_the_scale_of_rank_stabilised_lora_too() -> None:
    _, spec = read_shape(DEMO_FOLDER, r=4, alpha=8.0, target_modules="all-linear", rslora=True)
    assert spec.rslora
    assert with_rank(spec, 16).scale == pytest.approx(spec.scale)


@pytest.mark.parametrize("quantization", ["int8", "torchao-int8", "int4", "nf4"])
def test_stored_bytes_are_those_in_memory(quantization: str) -> None:
    shape, _ = read_shape(DEMO_FOLDER, r=4, alpha=8.0, target_modules="all-linear")
    model = load_base(DEMO_FOLDER, quantization=quantization).model
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for _, module in linear_modules(model):
        held += sum(b.numel() * b.element_size() for b in module.buffers())
        held += sum(t.numel() * t.element_size() for _, t in quantized_storage(module))
    # NF4 layers carry their codebooks and a description each, some 1.2 kB.
    extra = 1_500 * len(shape.linears) if quantization == "nf4" else 0
    assert stored_bytes(shape, quantization) <= held <= stored_bytes(shape, quantization) + extra


def test_conv1d_layers_are_turned(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=16).save_pretrained(
        tmp_path
    )
    shape, spec = read_shape(str(tmp_path), r=2, alpha=4.0, target_modules="all-linear")
    assert shape.linears[:4] == ((96, 32), (32, 32), (128, 32), (32, 128))
    assert (shape.inner, shape.attention, shape.key_value) == (128, 32, 32)
    assert shape.other_parameters == 99 * 32 + 16 * 32 + 2 * (4 * 32 + 96 + 32 + 128 + 32) + 64
    assert spec.size("A") == 2 * 2 * (32 + 32 + 32 + 128)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFound):
        read_shape(str(tmp_path), r=2, alpha=4.0, target_modules="all-linear")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(errors.UnsupportedModel):
        read_shape(str(tmp_path), r=2, alpha=4.0, target_modules="all-linear")
