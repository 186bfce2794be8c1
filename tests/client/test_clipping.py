"""Every engine equals a batch-of-one float64 truth, and no example can move the sum too far."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.adapter import AdaptedModel, adapt
from client.clipping import CLIPPERS, clip_and_sum, clip_factors, make_clipper
from client.examples import IGNORED, Example
from client.losses import Batch, collate
from client.quantization import QUANTIZATIONS
from shared.errors import InvalidValue, SensitivityError, UnsupportedModel
from tests.client.conftest import (
    MakeAdapted,
    MakeFolder,
    make_examples,
    relative_error,
    truth_clipped_sum,
    truth_gradients,
    truth_model,
)

ENGINES = list(CLIPPERS)


def flat_sum(model: AdaptedModel, engine: str, batch: Batch, bound: float) -> torch.Tensor:
    with model.training(), make_clipper(engine, model) as clipper:
        return torch.cat([g.reshape(-1) for g in clipper.clipped_sum(batch, bound)])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_clipped_sum_equals_float64_truth(
    adapted: MakeAdapted, model_folder: MakeFolder, family: str, quantization: str, engine: str
) -> None:
    model = adapted(family, quantization=quantization)
    examples = make_examples(5)
    gradients = truth_gradients(truth_model(model, model_folder(family)), examples)
    bound = float(gradients.norm(dim=1).median())
    found = flat_sum(model, engine, collate(examples, 0), bound)
    assert relative_error(found, truth_clipped_sum(gradients, bound)) <= 1e-6


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kinds", ["A", "B"])
def test_one_kind_of_factor_equals_float64_truth(
    adapted: MakeAdapted, model_folder: MakeFolder, kinds: str, engine: str
) -> None:
    model = adapted(kinds=kinds)
    examples = make_examples(4)
    gradients = truth_gradients(truth_model(model, model_folder()), examples)
    bound = float(gradients.norm(dim=1).median())
    found = flat_sum(model, engine, collate(examples, 0), bound)
    assert found.numel() == model.spec.size(kinds)
    assert relative_error(found, truth_clipped_sum(gradients, bound)) <= 1e-6


@pytest.mark.parametrize(
    ("engine", "reentrant"),
    [
        ("fused", False),
        ("fused", True),
        ("microbatch", False),
        ("microbatch", True),
        ("opacus", True),
    ],
)
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_gradient_checkpointing_changes_nothing(
    adapted: MakeAdapted, model_folder: MakeFolder, quantization: str, engine: str, reentrant: bool
) -> None:
    model = adapted(quantization=quantization)
    model.enable_checkpointing(reentrant=reentrant)
    examples = make_examples(4)
    gradients = truth_gradients(truth_model(model, model_folder()), examples)
    bound = float(gradients.norm(dim=1).median())
    found = flat_sum(model, engine, collate(examples, 0), bound)
    assert relative_error(found, truth_clipped_sum(gradients, bound)) <= 1e-6


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_really_recomputes(adapted: MakeAdapted, reentrant: bool) -> None:
    model = adapted()
    batch = collate(make_examples(2), 0)
    calls = []
    block = model.base.model.get_submodule("model.layers.0.mlp")
    with block.register_forward_pre_hook(lambda *_: calls.append(1)):
        flat_sum(model, "fused", batch, 1.0)
        model.enable_checkpointing(reentrant=reentrant)
        flat_sum(model, "fused", batch, 1.0)
    assert len(calls) == 3


def test_opacus_refuses_the_checkpointing_that_its_hooks_do_not_survive(
    adapted: MakeAdapted,
) -> None:
    model = adapted()
    model.enable_checkpointing()
    with pytest.raises(UnsupportedModel, match="checkpointing"):
        make_clipper("opacus", model)
    base = model.release()
    again = adapt(base, r=2, alpha=4, target_modules="all-linear")
    assert not again.checkpointing
    with make_clipper("opacus", again):
        pass  # a base that was released keeps its activations again


def test_tied_and_untied_embeddings(adapted: MakeAdapted, model_folder: MakeFolder) -> None:
    for tied in (True, False):
        model = adapted("llama", tie_word_embeddings=tied)
        examples = make_examples(4)
        folder = model_folder("llama", tie_word_embeddings=tied)
        gradients = truth_gradients(truth_model(model, folder), examples)
        found = flat_sum(model, "fused", collate(examples, 0), 0.5)
        assert relative_error(found, truth_clipped_sum(gradients, 0.5)) <= 1e-6


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_dropout_agrees_with_opacus_on_the_same_masks(
    adapted: MakeAdapted, quantization: str
) -> None:
    model = adapted(quantization=quantization, dropout=0.3)
    batch = collate(make_examples(5), 0)
    with torch.random.fork_rng(devices=[]):
        sums: list[torch.Tensor] = []
        for engine in ("fused", "opacus", "fused"):
            torch.manual_seed(len(sums) // 2)
            sums.append(flat_sum(model, engine, batch, 0.5))
    assert relative_error(sums[0], sums[1]) <= 1e-6
    assert relative_error(sums[2], sums[1]) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_is_left_as_it_was(adapted: MakeAdapted, engine: str) -> None:
    model = adapted()
    batch = collate(make_examples(3), 0)
    before = model.read_vector("AB")
    with torch.no_grad():
        logits = model.peft_model(input_ids=batch.ids).logits
    flat_sum(model, engine, batch, 1.0)
    with torch.no_grad():
        assert torch.equal(model.peft_model(input_ids=batch.ids).logits, logits)
    assert np.array_equal(model.read_vector("AB"), before)
    for _, parameter in model.trainable:
        assert parameter.grad is None
        assert getattr(parameter, "grad_sample", None) is None
    assert all(layer.examples == 0 and not layer.samples for layer in model.layers)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_examples_gradient_does_not_see_the_others(
    adapted: MakeAdapted, quantization: str, engine: str
) -> None:
    """Replace the rest of the batch; what is left after taking it out is example 0 alone."""
    model = adapted(quantization=quantization)
    first = make_examples(1, seed=1)
    alone = flat_sum(model, engine, collate(first, 0), math.inf)
    for seed in (2, 3, 4):
        others = make_examples(4, seed=seed)
        both = flat_sum(model, engine, collate([*first, *others], 0), math.inf)
        rest = flat_sum(model, engine, collate(others, 0), math.inf)
        assert float((both - rest - alone).norm() / both.norm()) <= 1e-6


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
def test_sensitivity_is_at_most_the_clip(
    sensitivity_model: AdaptedModel, data: st.DataObject
) -> None:
    """The pair of notes that breaks ``out.loss``: many short examples and one long one."""
    bound = data.draw(st.sampled_from([0.01, 0.5, 2.0, 8.0]))
    count = data.draw(st.integers(1, 8))
    scale = data.draw(st.sampled_from([2, 3, 12]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    examples = []
    for size in [2] * (count - 1) + [scale]:
        ids = rng.integers(3, 64, size=size).astype(np.int64)
        examples.append(Example(ids=ids, labels=ids.copy()))
    full = flat_sum(sensitivity_model, "fused", collate(examples, 0), bound)
    for out in range(count):
        fewer = [e for i, e in enumerate(examples) if i != out]
        less = torch.zeros_like(full)
        if fewer:
            less = flat_sum(sensitivity_model, "fused", collate(fewer, 0), bound)
        # The difference of two float32 passes carries their rounding on top of the bound.
        slack = 1e-6 * float(full.norm())
        assert float((full - less).norm()) <= bound + slack


def test_the_librarys_batch_mean_would_break_the_bound(
    adapted: MakeAdapted, model_folder: MakeFolder
) -> None:
    """Why ``out.loss`` is never used: a long example that leaves scales all the others up."""
    model = adapted()
    rng = np.random.default_rng(5)
    examples = []
    for size in [3] * 15 + [60]:
        ids = rng.integers(3, 64, size=size).astype(np.int64)
        examples.append(Example(ids=ids, labels=ids.copy()))
    counts = torch.tensor([float(e.ids.size - 1) for e in examples])
    gradients = truth_gradients(truth_model(model, model_folder()), examples)
    bound = 0.5 * float(gradients.norm(dim=1).median())

    def summed(weights: torch.Tensor, rows: int) -> torch.Tensor:
        return truth_clipped_sum(gradients[:rows] * weights[:rows, None], bound)

    # The batch mean gives example i the weight n_i / sum(n) of its own mean (times the batch size).
    with_long, without = 16 * counts / counts.sum(), 15 * counts / counts[:15].sum()
    library = float((summed(with_long, 16) - summed(without, 15)).norm())
    ours = float((summed(torch.ones(16), 16) - summed(torch.ones(15), 15)).norm())
    assert ours <= bound * (1 + 1e-12)
    assert library > 1.25 * bound


@pytest.fixture(scope="module")
def sensitivity_model(model_folder: MakeFolder) -> AdaptedModel:
    from client.model import load_base
    from shared.lora import initial_factors

    model = adapt(load_base(str(model_folder())), r=4, alpha=64, target_modules="all-linear")
    model.load(initial_factors(model.spec, 3))
    return model


@pytest.mark.parametrize("engine", ENGINES)
def test_every_clipped_gradient_stays_within_the_bound(adapted: MakeAdapted, engine: str) -> None:
    model = adapted()
    for example in make_examples(6):
        for bound in (1e-3, 0.1, 0.7):
            norm = float(flat_sum(model, engine, collate([example], 0), bound).norm())
            assert norm <= bound


@pytest.mark.parametrize("engine", ENGINES)
def test_an_example_without_labels_adds_zero(adapted: MakeAdapted, engine: str) -> None:
    model = adapted()
    one = make_examples(1)
    ids = np.array([5, 6, 7], dtype=np.int64)
    mute = Example(ids=ids, labels=np.full(3, IGNORED, dtype=np.int64))
    found = flat_sum(model, engine, collate([*one, mute], 0), 0.3)
    assert relative_error(found, flat_sum(model, engine, collate(one, 0), 0.3)) <= 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_a_non_finite_example_adds_zero(adapted: MakeAdapted, engine: str) -> None:
    """One embedding row is infinite; only the example with that token is lost."""
    model = adapted(tie_word_embeddings=False)
    with torch.no_grad():
        embedding = model.base.model.get_input_embeddings()
        assert isinstance(embedding.weight, torch.Tensor)
        embedding.weight[63] = torch.inf
    good = [e for e in make_examples(6) if 63 not in e.ids]
    bad_ids = np.array([4, 63, 9], dtype=np.int64)
    bad = Example(ids=bad_ids, labels=bad_ids.copy())
    found = flat_sum(model, engine, collate([*good, bad], 0), 0.3)
    assert bool(torch.isfinite(found).all())
    assert relative_error(found, flat_sum(model, engine, collate(good, 0), 0.3)) <= 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_uncovered_trainable_parameters_are_refused(adapted: MakeAdapted, engine: str) -> None:
    model = adapted()
    norm = model.base.model.get_submodule("model.norm")
    norm.requires_grad_(requires_grad=True)
    with pytest.raises(UnsupportedModel, match=r"model\.norm"):
        make_clipper(engine, model)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_that_gradients_do_not_pass_is_reported(adapted: MakeAdapted, engine: str) -> None:
    """What repacked NF4 weights do: everything before the last block gets no gradient."""
    model = adapted()
    block = model.base.model.get_submodule("model.layers.1")
    hook = block.register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:]))
    with hook, pytest.raises(UnsupportedModel, match="no gradient"):
        flat_sum(model, engine, collate(make_examples(2), 0), 1.0)


def test_a_mixed_batch_dimension_is_refused(adapted: MakeAdapted) -> None:
    model = adapted()
    layer = model.layers[0]
    layer.record(3)
    with pytest.raises(UnsupportedModel, match="cannot be told apart"):
        layer.forward(torch.zeros(6, 32))
    layer.record(0)


def test_clip_factors_at_the_edges() -> None:
    squared = torch.tensor([0.0, 4.0, math.inf, math.nan, 1e-300], dtype=torch.float64)
    factors = clip_factors(squared, 1.0).tolist()
    assert factors[0] == 1.0
    assert factors[1] == pytest.approx(0.5, rel=1e-11)
    assert factors[2:4] == [0.0, 0.0]
    assert factors[4] == 1.0
    assert clip_factors(squared, math.inf).tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(SensitivityError, match="max_grad_norm"):
        clip_factors(torch.ones(1, dtype=torch.float64), bound)


def test_the_norm_is_accumulated_in_float64() -> None:
    """A float32 norm of two million elements is too small by 3e-5; the clip would leak that."""
    sample = torch.full((1, 2_000_000), 0.1)
    (total,) = clip_and_sum([sample], 1.0)
    assert float(total.norm()) <= 1.0
    assert float(total.norm()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 15, 1 << 30])
def test_pieces_of_any_size_give_the_plain_clipped_sum(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Also of tensors that are held transposed, in another order, or in no order at all."""
    monkeypatch.setattr("client.sidebyside._AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(1)
    samples = [torch.randn(3, 4, size, generator=generator) for size in (5, 1, 70)]
    samples.append(torch.randn(3, 4, 9, generator=generator).transpose(1, 2))
    samples.append(torch.randn(9, 4, 3, generator=generator).transpose(0, 2))
    samples.append(torch.randn(3, 11, generator=generator))
    rows = torch.cat([sample.reshape(3, -1) for sample in samples], dim=1).double()
    bound = float(rows.norm(dim=1).median())
    found = clip_and_sum(samples, bound)
    assert [total.shape for total in found] == [sample.shape[1:] for sample in samples]
    assert all(total.dtype == torch.float64 for total in found)
    flat = torch.cat([total.reshape(-1) for total in found])
    assert relative_error(flat, truth_clipped_sum(rows, bound)) <= 1e-11


def test_a_microbatch_of_nothing_is_refused(adapted: MakeAdapted) -> None:
    batch = collate(make_examples(1), 0)
    empty = Batch(
        ids=batch.ids[:0], labels=batch.labels[:0], attention_mask=batch.attention_mask[:0]
    )
    with pytest.raises(InvalidValue, match="at least one example"):
        flat_sum(adapted(), "microbatch", empty, 1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_parameter_that_comes_later_is_seen(adapted: MakeAdapted, engine: str) -> None:
    """What trains is looked up each time an engine is made; nothing is remembered."""
    model = adapted()
    make_clipper(engine, model)
    block = model.base.model.get_submodule("model.layers.1.mlp")
    block.register_parameter("late", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.late"):
        make_clipper(engine, model)


def test_unknown_engine_gets_a_suggestion(adapted: MakeAdapted) -> None:
    with pytest.raises(InvalidValue, match="Did you mean 'fused'"):
        make_clipper("fussed", adapted())
