"""Adapters: names, shapes, in-place loading, and equality with PEFT's own computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import adapt
from client.adapterspec import adapter_spec
from client.losses import collate, per_sequence_losses
from client.model import load_base
from shared.errors import AdapterIncompatible, InvalidValue, UnsupportedModel
from shared.lora import initial_factors
from tests.client.conftest import MakeAdapted, MakeFolder, make_examples, relative_error


@pytest.mark.parametrize("quantization", ["none", "int8", "torchao-int8", "int4", "nf4"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_layers_compute_what_peft_computes(
    adapted: MakeAdapted, family: str, quantization: str, dropout: float
) -> None:
    """Losses and all gradients, in training mode and with the same dropout masks."""
    model = adapted(family, quantization=quantization, dropout=dropout)
    batch = collate(make_examples(4), 0)
    parameters = [parameter for _, parameter in model.trainable]

    def run() -> torch.Tensor:
        with model.training(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            losses = per_sequence_losses(model.peft_model, batch)
            gradients = torch.autograd.grad(losses.sum(), parameters)
        return torch.cat([losses.detach(), *(g.reshape(-1) for g in gradients)])

    ours = run()
    with model.plain_peft():
        theirs = run()
    assert relative_error(ours, theirs) <= 2e-6
    assert torch.equal(run(), ours)


def test_a_new_adapter_equals_the_base(model_folder: MakeFolder) -> None:
    base = load_base(str(model_folder()))
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        plain = base.model(ids).logits
        state = torch.random.get_rng_state()
        model = adapt(base, r=4, alpha=8, target_modules="all-linear")
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(model.peft_model(ids).logits, plain)
        model.load(initial_factors(model.spec, 1))
        assert torch.equal(model.peft_model(ids).logits, plain)


def test_the_specification_is_known_before_injection(model_folder: MakeFolder) -> None:
    base = load_base(str(model_folder()))
    spec = adapter_spec(base, r=4, alpha=8, target_modules="all-linear")
    assert spec == adapter_spec(base.model, r=4, alpha=8, target_modules="all-linear")
    assert adapt(base, r=4, alpha=8, target_modules="all-linear").spec == spec
    assert len(spec.factors) == 2 * 7 * 2
    assert not any("lm_head" in f.name or "embed" in f.name for f in spec.factors)
    shapes = {f.name: f.shape for f in spec.factors}
    stem = "base_model.model.model.layers.1.mlp.down_proj.lora_"
    assert shapes[f"{stem}A.weight"] == (4, 48)
    assert shapes[f"{stem}B.weight"] == (32, 4)


@pytest.mark.parametrize("quantization", ["none", "int8", "torchao-int8", "int4", "nf4"])
def test_conv1d_shapes_and_flag(model_folder: MakeFolder, quantization: str) -> None:
    base = load_base(str(model_folder("gpt2")), quantization=quantization)
    model = adapt(base, r=2, alpha=4, target_modules=["c_attn"])
    assert model.spec.fan_in_fan_out
    assert [f.shape for f in model.spec.factors] == [(2, 32), (96, 2)] * 2


def test_some_targets_alone(adapted: MakeAdapted) -> None:
    model = adapted(targets=["v_proj", "q_proj"])
    assert model.spec.target_modules == ("q_proj", "v_proj")
    assert {name.split(".")[-3] for name, _ in model.trainable} == {"q_proj", "v_proj"}
    one = adapted(targets=["layers.1.self_attn.q_proj"])
    assert len(one.spec.factors) == 2


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_prj"], r"'q_prj'.*down_proj.*Did you mean 'q_proj'"),
        (["mlp"], "'mlp'"),
        (["lm_head"], "'lm_head'"),
        (["embed_tokens"], "'embed_tokens'"),
        ([], "nothing"),
    ],
)
def test_unknown_targets_list_the_linear_modules(
    model_folder: MakeFolder, targets: list[str], message: str
) -> None:
    base = load_base(str(model_folder()))
    with pytest.raises(UnsupportedModel, match=message):
        adapter_spec(base, r=2, alpha=4, target_modules=targets)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-liner"},
        {"r": 0},
        {"r": True},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"dropout": 1.0},
        {"dropout": float("nan")},
        {"dropout": True},
    ],
)
def test_bad_options_are_refused(model_folder: MakeFolder, options: dict[str, Any]) -> None:
    base = load_base(str(model_folder()))
    values = {"r": 2, "alpha": 4, "target_modules": "all-linear", **options}
    with pytest.raises(InvalidValue):
        adapt(base, **values)


def test_vectors_and_factors_round_trip(adapted: MakeAdapted) -> None:
    model = adapted()
    rng = np.random.default_rng(0)
    for kinds in ("A", "B", "AB"):
        vector = rng.standard_normal(model.spec.size(kinds)).astype(np.float32)
        model.load_vector(vector, kinds)
        assert np.array_equal(model.read_vector(kinds), vector)
        named = model.spec.unflatten(vector, kinds)
        for name, parameter in model.peft_model.named_parameters():
            key = name.replace(".default.", ".")
            if key in named:
                assert np.array_equal(parameter.detach().numpy(), named[key])
    factors = model.factors()
    model.load_vector(np.zeros(model.spec.size("AB"), dtype=np.float32), "AB")
    model.load(factors)
    assert np.array_equal(model.read_vector("AB"), model.spec.flatten(factors))


def test_what_is_read_is_a_copy(adapted: MakeAdapted) -> None:
    model = adapted()
    for kinds in ("A", "AB"):
        first = model.read_vector(kinds)
        kept = first.copy()
        model.load_vector(np.zeros(model.spec.size(kinds), dtype=np.float32), kinds)
        assert np.array_equal(first, kept)
        first[:] = 7
        assert not model.read_vector(kinds).any()


def test_a_read_only_vector_of_any_float_type_loads(adapted: MakeAdapted) -> None:
    model = adapted()
    vector = np.linspace(0, 1, model.spec.size("B"), dtype=np.float64)
    vector.setflags(write=False)
    model.load_vector(vector, "B")
    assert np.array_equal(model.read_vector("B"), vector.astype(np.float32))


@pytest.mark.parametrize("kinds", ["A", "B", "AB"])
def test_adding_a_vector_is_a_step(adapted: MakeAdapted, kinds: str) -> None:
    model = adapted(kinds=kinds)
    before = model.read_vector("AB")
    model.add_vector(torch.ones(model.spec.size(kinds), dtype=torch.float64), scale=-0.5)
    change = model.spec.unflatten(model.read_vector("AB") - before)
    for factor in model.spec.factors:
        expected = -0.5 if factor.kind in kinds else 0.0
        assert change[factor.name] == pytest.approx(expected, abs=1e-6)


def test_wrong_shapes_load_nothing(adapted: MakeAdapted) -> None:
    model = adapted()
    before = model.read_vector("AB")
    with pytest.raises(AdapterIncompatible, match="vector of shape"):
        model.load_vector(np.zeros(3, dtype=np.float32), "B")
    name = model.spec.factors[0].name
    good = {name: np.zeros(model.spec.factors[0].shape, dtype=np.float32)}
    with pytest.raises(AdapterIncompatible, match="unknown"):
        model.load(good | {"unknown": np.zeros((2, 2), dtype=np.float32)})
    with pytest.raises(AdapterIncompatible, match="expected"):
        model.load({name: np.zeros((1, 1), dtype=np.float32)})
    for kinds in ("", "BA", "C"):
        with pytest.raises(InvalidValue, match="kinds"):
            model.read_vector(kinds)
    assert np.array_equal(model.read_vector("AB"), before)


def test_one_adapter_at_a_time(model_folder: MakeFolder) -> None:
    base = load_base(str(model_folder()))
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        plain = base.model(ids).logits
        model = adapt(base, r=2, alpha=4, target_modules="all-linear")
        model.load(initial_factors(model.spec, 1))
        model.load_vector(np.ones(model.spec.size("B"), dtype=np.float32), "B")
        with pytest.raises(InvalidValue, match="already carries an adapter"):
            adapt(base, r=2, alpha=4, target_modules="all-linear")
        assert not torch.allclose(base.model(ids).logits, plain)
        assert model.release() is base
        assert torch.equal(base.model(ids).logits, plain)
        adapt(base, r=3, alpha=4, target_modules=["q_proj"])
