"""Quantised bases: really converted, exact products, gradients that always flow."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from client.evaluation import evaluate
from client.losses import collate, per_sequence_losses
from client.model import load_base
from client.quantization import (
    dequantize,
    finish_quantized,
    linear_modules,
    loading_options,
    quantized_storage,
)
from client.training import TrainSettings, train_plain, train_private
from shared.errors import MissingDependency, UnsupportedModel
from shared.privacy.noise import NoiseSource
from tests.client.conftest import (
    MakeAdapted,
    MakeFolder,
    defined_weight,
    make_examples,
    relative_error,
)

BYTES_PER_WEIGHT = {"int8": 1.0, "nf4": 0.5}


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi"])
def test_every_linear_layer_is_stored_small(
    model_folder: MakeFolder, family: str, quantization: str
) -> None:
    """Other libraries leave GPT-2's Conv1D in full precision without a word."""
    plain = dict(linear_modules(load_base(str(model_folder(family))).model))
    base = load_base(str(model_folder(family)), quantization=quantization)
    layers = dict(linear_modules(base.model))
    assert set(layers) == set(plain)
    stored = sum(int(m.get_parameter("weight").nbytes) for m in layers.values())
    weights = sum(m.get_parameter("weight").numel() for m in plain.values())
    assert stored / weights == BYTES_PER_WEIGHT[quantization]


@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.012), ("nf4", 0.13)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dequantised_weights_are_near_the_originals(
    model_folder: MakeFolder, family: str, quantization: str, tolerance: float
) -> None:
    """Also catches a Conv1D whose weight was not transposed."""
    plain = dict(linear_modules(load_base(str(model_folder(family))).model))
    base = load_base(str(model_folder(family)), quantization=quantization)
    for name, module in linear_modules(base.model):
        original: torch.Tensor = plain[name].get_parameter("weight")
        original = original.t() if family == "gpt2" else original
        assert relative_error(dequantize(module), original) < tolerance


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_dequantising_follows_the_definition_at_every_width(
    model_folder: MakeFolder, quantization: str
) -> None:
    """bitsandbytes' CPU kernel mixes up scales where the width is no multiple of 64."""
    for width, inner in ((32, 48), (64, 88), (40, 50)):
        folder = model_folder("llama", hidden_size=width, intermediate_size=inner, head_dim=8)
        base = load_base(str(folder), quantization=quantization)
        for _, module in linear_modules(base.model):
            expected = defined_weight(module.weight)
            assert relative_error(dequantize(module).double(), expected) < 2e-7


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_product_and_its_gradient_are_exact(
    model_folder: MakeFolder, quantization: str
) -> None:
    for family in ("llama", "gpt2"):
        base = load_base(str(model_folder(family)), quantization=quantization)
        for _, module in linear_modules(base.model):
            weight, bias = dequantize(module), module.bias
            x = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(1))
            x.requires_grad_(True)
            found = module(x)
            expected = F.linear(x, weight, bias)  # type: ignore[arg-type]
            assert torch.equal(found, expected)
            grad = torch.ones_like(found)
            (one,) = torch.autograd.grad(found, x, grad)
            (two,) = torch.autograd.grad(expected, x, grad)
            assert torch.allclose(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_cache_changes_no_number(adapted: MakeAdapted, quantization: str) -> None:
    batch = collate(make_examples(4), 0)
    results = []
    for cache in (False, True):
        model = adapted(quantization=quantization, cache=cache)
        losses = per_sequence_losses(model.peft_model, batch)
        gradients = torch.autograd.grad(losses.sum(), [p for _, p in model.trainable])
        with torch.no_grad(), model.disabled():
            plain = per_sequence_losses(model.peft_model, batch)
        results.append([losses, plain, *gradients])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    cached = [n for m in model.peft_model.modules() for n, _ in quantized_storage(m)]
    assert sum(name == "weight.dequantized" for name in cached) == len(model.layers)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_training_after_an_evaluation_reaches_every_factor(
    adapted: MakeAdapted, quantization: str
) -> None:
    """The trap: on AVX512-BF16 CPUs, bitsandbytes' NF4 is not differentiable once evaluated."""
    model = adapted(quantization=quantization)
    examples = make_examples(6)
    first = evaluate(model, examples, batch_size=3)
    batch = collate(examples, 0)
    loss = per_sequence_losses(model.peft_model, batch).sum()
    gradients = torch.autograd.grad(loss, [p for _, p in model.trainable], allow_unused=True)
    assert all(g is not None and float(g.abs().max()) > 0 for g in gradients)
    settings = TrainSettings(local_steps=40, batch_size=6, learning_rate=0.3)
    train_plain(model, examples, settings, rng=np.random.default_rng(0))
    assert evaluate(model, examples, batch_size=3).loss < 0.8 * first.loss
    steps = train_private(
        model,
        examples,
        TrainSettings(local_steps=1, batch_size=6, learning_rate=0.3),
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        sampling_probability=1.0,
        source=NoiseSource.seeded(1),
    )
    assert steps == 1


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_evaluating_does_not_change_the_storage(adapted: MakeAdapted, quantization: str) -> None:
    model = adapted(quantization=quantization)
    layer: Any = model.base.model.get_submodule("model.layers.0.mlp.up_proj.base_layer")
    before = layer.weight.data.clone()
    evaluate(model, make_examples(3), batch_size=3)
    assert torch.equal(layer.weight.data, before)


def test_a_layer_left_in_full_precision_is_refused(model_folder: MakeFolder) -> None:
    model = load_base(str(model_folder())).model
    with pytest.raises(UnsupportedModel, match="left 14 of 14 linear layers"):
        finish_quantized(model, "nf4", cache=False)
    finish_quantized(model, "none", cache=False)


def test_without_bitsandbytes_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependency, match=r"fedslm\[client\]"):
        loading_options("nf4", "cpu")
    assert loading_options("none", "cpu") == {}
