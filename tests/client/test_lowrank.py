"""The adapted layer against the plain formula, each way of computing it, on each stored base."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from client.adapter import AdaptedModel
from client.clipping import make_clipper
from client.losses import collate, per_sequence_losses
from client.lowrank import LowRankLayer
from client.quantization import QUANTIZATIONS, makes_copy, stored_weight
from tests.client.conftest import MakeAdapted, make_examples, relative_error

# Layers of the tiny models are 32 and 48 wide: up to 32 rows everything is thin, and from 49 on
# everything is summed.
FEW, MANY = 8, 80


def layer_of(model: AdaptedModel, name: str = "up_proj") -> LowRankLayer:
    """Return the layer of the first block with this name."""
    wanted = model.base.model.get_submodule(f"model.layers.0.mlp.{name}")
    (found,) = [layer for layer in model.layers if layer.module is wanted]
    return found


def input_of(layer: LowRankLayer, rows: int, examples: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(examples, rows // examples, layer.a.shape[1], generator=generator)
    return x.requires_grad_(True)


def plainly(layer: LowRankLayer, x: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the output and every gradient by the definition, in float64, without autograd."""
    weight, bias = (None if t is None else t.detach().double() for t in stored_weight(layer._base))
    a, b = layer.a.detach().double(), layer.b.detach().double()
    x, grad = x.detach().double(), grad.double()
    assert weight is not None
    full = weight + layer._scale * b @ a
    return {
        "y": x @ full.t() + (0.0 if bias is None else bias),
        "x": grad @ full,
        "A": layer._scale * torch.einsum("tij,jr,tik->trk", grad, b, x),
        "B": layer._scale * torch.einsum("tij,rk,tik->tjr", grad, a, x),
    }


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("name", ["up_proj", "down_proj"])
def test_output_and_gradients_equal_the_formula(
    adapted: MakeAdapted, quantization: str, rows: int, cache: bool, name: str
) -> None:
    layer = layer_of(adapted(quantization=quantization, cache=cache), name)
    x = input_of(layer, rows)
    y = layer.forward(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = plainly(layer, x, grad)
    of_x, of_a, of_b = torch.autograd.grad(y, (x, layer.a, layer.b), grad)
    assert of_b.shape == layer.b.shape
    assert relative_error(y.detach(), expected["y"]) < 5e-7
    assert relative_error(of_x, expected["x"]) < 5e-7
    assert relative_error(of_a, expected["A"].sum(dim=0)) < 5e-7
    assert relative_error(of_b, expected["B"].sum(dim=0)) < 5e-7


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("times", [1, 2])
def test_samples_equal_the_formula_also_of_a_layer_used_twice(
    adapted: MakeAdapted, rows: int, times: int
) -> None:
    layer = layer_of(adapted())
    layer.record(4)
    expected = {"A": torch.zeros(()), "B": torch.zeros(())}
    for turn in range(times):
        x = input_of(layer, rows + 4 * turn)
        y = layer.forward(x)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(turn))
        y.backward(grad)  # type: ignore[no-untyped-call]
        part = plainly(layer, x, grad)
        expected = {kind: expected[kind] + part[kind] for kind in "AB"}
    for kind, factor in (("A", layer.a), ("B", layer.b)):
        assert layer.samples[kind].shape == (4, *factor.shape)
        assert relative_error(layer.samples[kind], expected[kind]) < 5e-7
        assert factor.grad is None
    layer.record(0)
    assert not layer.samples


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_product_leaves_what_is_stored_alone(
    adapted: MakeAdapted, quantization: str, rows: int
) -> None:
    """The sum is made in place only where the weight was dequantised for it."""
    for cache in (False, True):
        layer = layer_of(adapted(quantization=quantization, cache=cache))
        assert makes_copy(layer._base) == (quantization != "none" and not cache)
        before = stored_weight(layer._base)[0].clone()
        for _ in range(2):
            torch.autograd.grad(layer.forward(input_of(layer, rows)).sum(), layer.a)
        assert torch.equal(stored_weight(layer._base)[0], before)
        summed = layer.summed()[0].clone()
        assert torch.equal(layer.summed()[0], summed)


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_bfloat16_is_as_near_as_pefts_own_forward(adapted: MakeAdapted, rows: int) -> None:
    """Neither autocast nor bfloat16 weights lose the adapter in the sum with the weight."""
    model = adapted()
    layer = layer_of(model)
    layer._base.weight.data = layer._base.weight.data.to(torch.bfloat16)
    x = input_of(layer, rows)

    def found() -> list[float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer.module(x)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        expected = plainly(layer, x, grad)
        gradients = torch.autograd.grad(y, (x, layer.a, layer.b), grad)
        pairs = zip("xAB", gradients, strict=True)
        sums = {
            kind: expected[kind].sum(dim=0) if kind != "x" else expected[kind] for kind in "xAB"
        }
        return [
            relative_error(y.detach(), expected["y"]),
            *(relative_error(gradient, sums[kind]) for kind, gradient in pairs),
        ]

    ours = found()
    with model.plain_peft():
        theirs = found()
    assert max(ours) < 1e-2
    assert all(one < 1.5 * other for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("kinds", ["A", "B", "AB"])
def test_only_what_a_training_factor_needs_is_kept(
    adapted: MakeAdapted, kinds: str, rows: int
) -> None:
    layer = layer_of(adapted(kinds=kinds))
    node: Any = layer.forward(input_of(layer, rows)).grad_fn
    kept_input, kept_down, gates, _, _ = node.saved_tensors
    assert gates is None
    assert (kept_input is not None) == ("A" in kinds)
    assert (kept_down is not None) == ("B" in kinds)


def test_a_factor_that_changes_before_the_way_back_is_noticed(adapted: MakeAdapted) -> None:
    model = adapted()
    loss = per_sequence_losses(model.peft_model, collate(make_examples(2), 0)).sum()
    with torch.no_grad():
        model.layers[0].b.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_the_first_layers_input_gradient_is_not_computed(adapted: MakeAdapted) -> None:
    """Nothing trains below it, so the product that would give it is left out."""
    model = adapted()
    asked: dict[str, bool] = {}

    def note(name: str) -> Any:
        def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
            asked[name] = output.grad_fn.needs_input_grad[0]

        return hook

    with ExitStack() as stack:
        for index in (0, 1):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                full = f"model.layers.{index}.self_attn.{name}"
                module = model.base.model.get_submodule(full)
                stack.enter_context(module.register_forward_hook(note(full)))
        per_sequence_losses(model.peft_model, collate(make_examples(2), 0))
    assert len(asked) == 8
    for full, needed in asked.items():
        assert needed == (".1." in full or "o_proj" in full), full


@pytest.mark.parametrize("engine", ["fused", "microbatch"])
def test_both_ways_give_the_same_clipped_sum(
    adapted: MakeAdapted, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """What decides is speed alone."""
    model = adapted()
    batch = collate(make_examples(5), 0)
    sums = []
    for thin in (True, False):
        monkeypatch.setattr(LowRankLayer, "is_thin", lambda *_, thin=thin: thin)
        with model.training(), make_clipper(engine, model) as clipper:
            sums.append(torch.cat([g.reshape(-1) for g in clipper.clipped_sum(batch, 0.5)]))
    assert relative_error(sums[0], sums[1]) < 1e-6
