"""Clients with factors of their own on one base, against PEFT with one client's factors at a time.

TOLERANCE bounds the difference by the order of float32 sums, relative to the length of the
expected gradient; a row with another client's factors or examples would be off by about one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import AdaptedModel
from client.clipping import clip_and_sum, make_clipper
from client.grouped import GroupedAdapter
from client.losses import Batch, collate, per_sequence_losses
from shared.errors import UnsupportedModel
from tests.client.conftest import MakeAdapted, make_examples, relative_error

TOLERANCE = 1e-5
# Neither sorted nor even; the client 2 has no example in the batch.
OWNERS = (1, 0, 1, 3, 1)
CLIENTS = 4
BOUND = 0.5


def grouped(model: AdaptedModel, *, moved: bool) -> GroupedAdapter:
    """Return an adapter whose clients have, once they moved, factors that differ much."""
    adapter = GroupedAdapter(model, CLIENTS)
    if moved:
        generator = torch.Generator().manual_seed(5)
        adapter.flat += 0.1 * torch.randn(adapter.flat.shape, generator=generator)
        adapter.moved = True
    return adapter


def found_sums(
    model: AdaptedModel, adapter: GroupedAdapter, batch: Batch, *, bound: float | None = None
) -> torch.Tensor:
    clients = torch.tensor(OWNERS[: len(batch.ids)])
    dtype = torch.float32 if bound is None else torch.float64
    # Sums are added to what is there.
    total = torch.ones(adapter.flat.shape, dtype=dtype)
    with model.training(), adapter.attached():
        if bound is None:
            adapter.add_sums(batch, clients, total)
        else:
            adapter.add_clipped_sums(batch, clients, bound, total)
    return total - 1.0


def one_at_a_time(
    model: AdaptedModel, adapter: GroupedAdapter, gradient: Callable[[Batch], list[torch.Tensor]]
) -> torch.Tensor:
    """Return each client's sum over its examples, one example and one client's factors at a time.

    Args:
        model: left with its own factors.
        adapter: says the factors of each client.
        gradient: of one example under the factors that the model holds.
    """
    start = model.read_vector(model.kinds)
    total = torch.zeros(adapter.flat.shape, dtype=torch.float64)
    for owner, example in zip(OWNERS, make_examples(len(OWNERS)), strict=True):
        model.load_vector(adapter.flat[owner].numpy(), model.kinds)
        found = gradient(collate([example], 0))
        total[owner] += torch.cat([part.reshape(-1).double() for part in found])
    model.load_vector(start, model.kinds)
    return total


def by_peft(model: AdaptedModel) -> Callable[[Batch], list[torch.Tensor]]:
    """Return what takes the gradient with PEFT's own layers."""
    parameters = [parameter for _, parameter in model.trainable]

    def gradient(batch: Batch) -> list[torch.Tensor]:
        with model.training(), model.plain_peft():
            loss = per_sequence_losses(model.peft_model, batch).sum()
            return list(torch.autograd.grad(loss, parameters))

    return gradient


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kinds", ["A", "B", "AB"])
def test_each_row_is_the_gradient_of_its_client(
    adapted: MakeAdapted, kinds: str, quantization: str, *, moved: bool
) -> None:
    model = adapted(kinds=kinds, quantization=quantization)
    adapter = grouped(model, moved=moved)
    expected = one_at_a_time(model, adapter, by_peft(model))
    found = found_sums(model, adapter, collate(make_examples(len(OWNERS)), 0))
    assert not found[2].any()
    for owner in set(OWNERS):
        assert relative_error(found[owner], expected[owner]) < TOLERANCE


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("kinds", ["A", "B", "AB"])
def test_each_row_is_the_clipped_sum_of_its_client(
    adapted: MakeAdapted, kinds: str, *, moved: bool
) -> None:
    model = adapted(kinds=kinds)
    adapter = grouped(model, moved=moved)

    def clipped(batch: Batch) -> list[torch.Tensor]:
        found = by_peft(model)(batch)
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in found))
        norms.append(norm)
        return [part * min(1.0, BOUND / norm) for part in found]

    norms: list[float] = []
    expected = one_at_a_time(model, adapter, clipped)
    assert max(norms) > BOUND
    found = found_sums(model, adapter, collate(make_examples(len(OWNERS)), 0), bound=BOUND)
    assert not found[2].any()
    for owner in set(OWNERS):
        assert relative_error(found[owner], expected[owner]) < TOLERANCE
        assert float(found[owner].norm()) <= BOUND * OWNERS.count(owner) + 1e-12


@pytest.mark.parametrize("bound", [None, BOUND])
def test_a_client_whose_factors_are_not_finite_spoils_its_own_row_alone(
    adapted: MakeAdapted, bound: float | None
) -> None:
    model = adapted(kinds="AB")
    adapter = grouped(model, moved=True)
    batch = collate(make_examples(len(OWNERS)), 0)
    expected = found_sums(model, adapter, batch, bound=bound)
    adapter.flat[1, 3] = math.nan
    found = found_sums(model, adapter, batch, bound=bound)
    assert not found[1].any()
    for owner in (0, 3):
        assert expected[owner].any()
        assert relative_error(found[owner], expected[owner]) < TOLERANCE


@pytest.mark.parametrize(("kinds", "wide"), [("A", True), ("B", False), ("AB", True)])
def test_only_what_the_trained_factors_need_is_kept(
    adapted: MakeAdapted, kinds: str, *, wide: bool
) -> None:
    """For B alone ``s A x^T`` is kept, ``r`` values for each token; the input is not."""
    model = adapted(kinds=kinds)
    adapter = grouped(model, moved=True)
    layer = adapter._layers[0]
    layer.attach()
    layer.record(len(OWNERS))
    layer.clients = torch.tensor(OWNERS)
    x = torch.randn(len(OWNERS), 7, layer.a.shape[1], requires_grad=True)
    output: Any = layer.forward(x)
    saved = output.grad_fn.saved_tensors[:2]
    model.layers[0].attach()
    assert (saved[0] is not None) is wide
    assert (saved[1] is not None) is ("B" in kinds)
    if saved[1] is not None:
        assert saved[1].numel() == layer.a.shape[0] * len(OWNERS) * 7


def test_dropout_is_refused(adapted: MakeAdapted) -> None:
    model = adapted(dropout=0.1)
    with pytest.raises(UnsupportedModel, match="dropout"):
        GroupedAdapter(model, 2)


@pytest.mark.parametrize("room", [1, 100, 1 << 30])
def test_sums_by_member_are_the_sums_of_the_members(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Both layouts of a factor, pieces of any size, and an example that is not finite."""
    monkeypatch.setattr("client.sidebyside._AT_ONCE", room)
    rng = np.random.default_rng(0)
    samples = [
        torch.from_numpy(rng.normal(size=(5, 2, 7))),
        torch.from_numpy(rng.normal(size=(5, 2, 6))).mT,
        torch.from_numpy(rng.normal(size=(5, 4, 2))),
    ]
    samples[1][4, 0, 0] = math.inf
    members = torch.tensor([[True, False, True, False, True], [False, True, False, False, False]])
    found = clip_and_sum([sample.clone() for sample in samples], BOUND, members)
    for row, chosen in enumerate(members):
        expected = clip_and_sum([sample[chosen].clone() for sample in samples], BOUND)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one[row], other, rtol=1e-12, atol=1e-15)


def test_a_group_of_one_clips_as_the_fused_engine_does(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    batch = collate(make_examples(len(OWNERS)), 0)
    adapter = GroupedAdapter(model, 1)
    total = torch.zeros(adapter.flat.shape, dtype=torch.float64)
    with model.training(), adapter.attached():
        adapter.add_clipped_sums(batch, torch.zeros(len(OWNERS), dtype=torch.long), BOUND, total)
    with model.training(), make_clipper("fused", model) as engine:
        expected = torch.cat([part.reshape(-1) for part in engine.clipped_sum(batch, BOUND)])
    assert torch.allclose(total[0], expected, rtol=1e-12, atol=1e-15)
