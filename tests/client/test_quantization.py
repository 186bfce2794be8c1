"""Quantised bases: really converted, exact products, gradients that always flow."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from client.evaluation import evaluate
from client.int4 import dequantize_int4, quantize_int4
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


def stored_bytes(rows: int, columns: int, quantization: str) -> int:
    """Return what a matrix takes, scales apart; groups of int4 do not run on into the next row."""
    if quantization == "int4":
        return rows * math.ceil(columns / 32) * 16
    return rows * columns if "int8" in quantization else rows * columns // 2


@pytest.mark.parametrize("quantization", ["int8", "torchao-int8", "int4", "nf4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi"])
def test_every_linear_layer_is_stored_small(
    model_folder: MakeFolder, family: str, quantization: str
) -> None:
    """Other libraries leave GPT-2's Conv1D in full precision without a word."""
    plain = dict(linear_modules(load_base(str(model_folder(family))).model))
    base = load_base(str(model_folder(family)), quantization=quantization)
    layers = dict(linear_modules(base.model))
    assert set(layers) == set(plain)
    for name, module in layers.items():
        shape = tuple(plain[name].get_parameter("weight").shape)
        rows, columns = shape[::-1] if family == "gpt2" else shape
        stored = int(module.get_parameter("weight").nbytes)
        assert stored == stored_bytes(rows, columns, quantization)


@pytest.mark.parametrize(
    ("quantization", "tolerance"),
    [("int8", 0.012), ("torchao-int8", 0.012), ("int4", 0.13), ("nf4", 0.13)],
)
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


@pytest.mark.parametrize("quantization", ["int8", "torchao-int8", "int4", "nf4"])
def test_dequantising_follows_the_definition_at_every_width(
    model_folder: MakeFolder, quantization: str
) -> None:
    """bitsandbytes' CPU kernel mixes up scales where the width is no multiple of 64."""
    for width, inner in ((32, 48), (64, 88), (40, 50)):
        folder = model_folder("llama", hidden_size=width, intermediate_size=inner, head_dim=8)
        base = load_base(str(folder), quantization=quantization)
        for _, module in linear_modules(base.model):
            expected = defined_weight(module)
            assert relative_error(dequantize(module).double(), expected) < 2e-7


@pytest.mark.parametrize("quantization", ["int8", "torchao-int8", "int4", "nf4"])
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


@pytest.mark.parametrize("quantization", ["int8", "torchao-int8", "int4", "nf4"])
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


@pytest.mark.parametrize("quantization", ["none", "int8", "torchao-int8", "int4", "nf4"])
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


@pytest.mark.parametrize("quantization", ["int8", "torchao-int8", "int4", "nf4"])
def test_evaluating_does_not_change_the_storage(adapted: MakeAdapted, quantization: str) -> None:
    model = adapted(quantization=quantization)
    layer: Any = model.base.model.get_submodule("model.layers.0.mlp.up_proj.base_layer")
    before = layer.weight.data.clone()
    evaluate(model, make_examples(3), batch_size=3)
    assert torch.equal(layer.weight.data, before)


def test_a_layer_left_in_full_precision_is_refused(model_folder: MakeFolder) -> None:
    model = load_base(str(model_folder())).model
    with pytest.raises(UnsupportedModel, match="left 14 of 14 linear layers"):
        finish_quantized(model, "nf4")
    finish_quantized(model, "none")


def test_int4_codes_follow_the_published_rule() -> None:
    """Worked by hand: the largest magnitude becomes code -8 of its scale, whatever its sign."""
    row = torch.zeros(1, 40)
    row[0, :4] = torch.tensor([4.0, 1.0, -1.2, -4.0])
    row[0, 32:35] = torch.tensor([-0.8, 0.1, 0.04])
    packed, scales = quantize_int4(row)
    assert scales.tolist() == [[-0.5, float(torch.tensor(0.1).half())]]
    low = (packed & 15).int() - 8
    assert low[0, 0, :5].tolist() == [-8, -2, 2, 7, 0]  # -4.0 would be +8, which does not exist
    assert low[0, 1, :4].tolist() == [-8, 1, 0, 0]
    assert packed.shape == (1, 2, 16)
    dense = dequantize_int4(packed, scales, 40)
    assert dense[0, :5].tolist() == [4.0, 1.0, -1.0, -3.5, 0.0]
    assert dense.shape == (1, 40)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_int4_is_off_by_at_most_half_a_scale(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 80))
    size = 10.0 ** data.draw(st.integers(-3, 3))
    seed = data.draw(st.integers(0, 2**32))
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    packed, scales = quantize_int4(weight)
    found = dequantize_int4(packed, scales, columns)
    spread = scales.float().abs().repeat_interleave(32, dim=1)[:, :columns]
    # +8 does not exist, so a value between 7.5 and 8 scales is off by more; and the largest one
    # is off by what rounding its scale to 16 bits costs (2**-11 relative, eight times).
    clipped = (weight / scales.float().repeat_interleave(32, dim=1)[:, :columns]) > 7.5
    limit = torch.where(clipped, 1.01, 0.51) * spread
    assert bool(((found - weight).abs() <= limit).all())
    again, same = quantize_int4(found)
    assert torch.equal(dequantize_int4(again, same, columns), found) or bool(clipped.any())


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_int4_refuses_weights_that_it_cannot_scale(value: float) -> None:
    with pytest.raises(UnsupportedModel, match="4-bit groups"):
        quantize_int4(torch.full((1, 32), value))


def test_int4_needs_no_bitsandbytes(
    model_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert loading_options("int4", "cpu") == {}
    base = load_base(str(model_folder()), quantization="int4")
    assert base.quantization == "int4"


def test_without_bitsandbytes_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependency, match=r"fedslm\[client\]"):
        loading_options("nf4", "cpu")
    assert loading_options("none", "cpu") == {}
