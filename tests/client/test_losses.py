"""Losses of single positions against torch's own cross entropy, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from client.examples import IGNORED
from client.losses import Batch, _CrossEntropy, collate, per_sequence_losses, token_losses
from client.model import load_base
from shared.errors import UnsupportedModel
from tests.client.conftest import CONFIGS, MakeAdapted, MakeFolder, make_examples, relative_error


def plain_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return what :func:`token_losses` should: all logits, torch's loss, in float64."""
    logits = model(input_ids=batch.ids, use_cache=False).logits.double()
    targets = torch.full_like(batch.labels, IGNORED)
    targets[:, :-1] = batch.labels[:, 1:]
    flat = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def own_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses: torch.Tensor = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return losses


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_losses_of_every_family_equal_torchs(model_folder: MakeFolder, family: str) -> None:
    """Gemma 2 caps its logits, which the choice of positions must not disturb."""
    model = load_base(str(model_folder(family))).model
    batch = collate(make_examples(5), 0)
    with torch.no_grad():
        found, counted = token_losses(model, batch)
        expected = plain_losses(model, batch)
    assert found.dtype == torch.float32
    assert torch.equal(counted[:, :-1], batch.labels[:, 1:] != IGNORED)
    assert not bool(counted[:, -1].any())
    assert not bool(found[~counted].any())
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradients_equal_torchs(adapted: MakeAdapted, family: str) -> None:
    model = adapted(family)
    parameters = [parameter for _, parameter in model.trainable]
    batch = collate(make_examples(5), 0)
    weights = torch.linspace(0.5, 2.0, 5)
    found = (weights * per_sequence_losses(model.peft_model, batch)).sum()
    whole = plain_losses(model.peft_model, batch).sum(dim=1)
    counts = (batch.labels[:, 1:] != IGNORED).sum(dim=1)
    expected = (weights * whole / counts).sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    pairs = zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    )
    assert all(relative_error(one, other) < 5e-6 for one, other in pairs)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cross_entropy_equals_torchs_whatever_the_size(data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 40))
    scale = 10.0 ** data.draw(st.integers(-3, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits = (scale * torch.randn(rows, width, generator=generator)).requires_grad_(True)
    targets = torch.randint(0, width, (rows,), generator=generator)
    grad = torch.randn(rows, generator=generator)
    twin = logits.detach().double().requires_grad_(True)
    expected = cross_entropy(twin, targets, reduction="none")
    (of_twin,) = torch.autograd.grad(expected, twin, grad.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.losses._AT_ONCE", {"cpu": data.draw(st.sampled_from([1, 60, 1000]))})
        # A leaf must not be written to, and logits never are one.
        found = own_loss(logits * 1.0, targets)
        (of_logits,) = torch.autograd.grad(found, logits, grad)
    size = float(expected.detach().abs().max()) if rows else 0.0
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-6 * (1.0 + size))
    assert torch.allclose(of_logits.double(), of_twin, rtol=1e-5, atol=1e-6)


def test_bfloat16_logits_lose_no_more_than_torchs() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(7, 50, generator=generator)).bfloat16().requires_grad_(True)
    targets = torch.randint(0, 50, (7,), generator=generator)
    twin = logits.detach().double().requires_grad_(True)
    expected = cross_entropy(twin, targets, reduction="none")
    found = own_loss(logits * 1.0, targets)
    assert found.dtype == torch.float32
    assert relative_error(found.detach(), expected.detach()) < 1e-6
    (of_logits,) = torch.autograd.grad(found.sum(), logits)
    (of_twin,) = torch.autograd.grad(expected.sum(), twin)
    assert of_logits.dtype == torch.bfloat16
    assert relative_error(of_logits, of_twin) < 3e-3


def test_a_row_sees_no_other_row(adapted: MakeAdapted) -> None:
    """Bit for bit, where the model itself sees none: on given logits."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 33, generator=generator)
    targets = torch.randint(0, 33, (6,), generator=generator)
    other = torch.cat([logits[:1], 1e3 * torch.randn(5, 33, generator=generator)])
    results = []
    for each in (logits, other, logits[:1]):
        leaf = each.clone().requires_grad_(True)
        losses = own_loss(leaf * 1.0, targets[: each.shape[0]])
        (grad,) = torch.autograd.grad(losses.sum(), leaf)
        results.append((losses[0].detach(), grad[0]))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_the_logits_gradient_is_written_over_the_logits() -> None:
    logits = torch.randn(4, 9, requires_grad=True) * 1.0
    where = logits.data_ptr()
    losses = own_loss(logits, torch.zeros(4, dtype=torch.int64))
    (grad,) = torch.autograd.grad(losses.sum(), logits)
    assert grad.data_ptr() == where


def test_a_second_way_back_is_refused() -> None:
    logits = torch.randn(4, 9, requires_grad=True) * 1.0
    losses = own_loss(logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()  # type: ignore[no-untyped-call]


def test_logits_that_another_function_kept_are_not_used_silently() -> None:
    logits = (torch.randn(4, 9, requires_grad=True) * 1.0).tanh()  # keeps its result
    losses = own_loss(logits, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()  # type: ignore[no-untyped-call]


def test_no_logits_without_a_label(adapted: MakeAdapted) -> None:
    model = adapted()
    batch = collate(make_examples(4), 0)
    head: Any = model.base.model.get_submodule("lm_head")
    seen = []
    with head.register_forward_hook(lambda _, __, output: seen.append(output.shape)):
        per_sequence_losses(model.peft_model, batch)
    labelled = int((batch.labels[:, 1:] != IGNORED).sum())
    assert labelled < batch.labels[:, 1:].numel()
    assert seen == [(1, labelled, 64)]


def test_a_model_that_is_not_applied_by_position_is_refused(adapted: MakeAdapted) -> None:
    batch = collate(make_examples(2), 0)
    with pytest.raises(UnsupportedModel, match="position by position"):
        token_losses(torch.nn.Linear(2, 2), batch)
    model = adapted().base.model
    head: Any = model.get_submodule("lm_head")
    with (
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :1],)),
        pytest.raises(UnsupportedModel, match="position by position"),
    ):
        token_losses(model, batch)
