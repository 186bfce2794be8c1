"""A client whose adapter is not reached stops before it touches a record."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from client.adapter import AdaptedModel
from client.gradientcheck import require_gradient
from client.lowrank import LowRankLayer
from shared.errors import UnsupportedModel
from tests.client.conftest import MakeAdapted


@pytest.mark.parametrize("quantization", ["none", "int8", "torchao-int8", "int4", "nf4"])
@pytest.mark.parametrize("kinds", ["A", "B", "AB"])
def test_a_base_of_any_storage_is_reached(
    adapted: MakeAdapted, quantization: str, kinds: str
) -> None:
    model = adapted(quantization=quantization, kinds=kinds)
    before = model.read_vector("AB").copy()
    state = torch.random.get_rng_state()
    require_gradient(model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (model.read_vector("AB") == before).all()
    assert model.kinds == kinds


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "gpt_neox", "phi3"])
def test_other_families_are_reached(adapted: MakeAdapted, family: str) -> None:
    require_gradient(adapted(family, quantization="int4"))


def test_zero_is_right_where_the_other_factor_is_zero(adapted: MakeAdapted) -> None:
    model = adapted()
    model.load_vector(0 * model.read_vector("B"), "B")
    require_gradient(model)
    model.set_trainable("A")
    require_gradient(model)
    model.load_vector(0 * model.read_vector("A"), "A")
    require_gradient(model)


def block_gradient(model: AdaptedModel, name: str) -> None:
    """Make one layer give out what it should, and let nothing flow back to its factors."""
    layer = next(one for one in model.layers if one.module is model.base.model.get_submodule(name))
    plain = LowRankLayer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = plain(layer, x)
        return y.detach() + 0.0 * y

    layer.module.forward = forward


def test_a_layer_that_gets_zeros_is_named(adapted: MakeAdapted) -> None:
    model = adapted()
    block_gradient(model, "model.layers.0.mlp.up_proj")
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.up_proj.*zeros"):
        require_gradient(model)


def test_a_layer_that_gets_none_is_refused(adapted: MakeAdapted) -> None:
    """What bitsandbytes' repacked NF4 layer does: the first evaluation cuts the graph."""
    model = adapted()
    layer: Any = model.base.model.get_submodule("model.layers.1.mlp.down_proj")
    plain, evaluated = layer.forward, []

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            evaluated.append(True)
        found: torch.Tensor = plain(x)
        return found.detach() if evaluated else found

    layer.forward = forward
    with pytest.raises(UnsupportedModel, match="no gradient"):
        require_gradient(model)


def test_a_trap_in_the_library_is_one_no_more(adapted: MakeAdapted) -> None:
    """NF4 on this processor, whatever it is: an evaluation first, and every factor moves."""
    model = adapted(quantization="nf4")
    for module in model.base.model.modules():
        assert not getattr(module, "support_avx512bf16_for_cpu", False)
    require_gradient(model)
