"""The whole grid: families x bases x engines x checkpointing x dropout x tied or not, no gaps.

The truth takes one example at a time, without padding, in float64, with PEFT's own forward and the
weights from the definition of their format; dropout masks are those that the engine drew. Every
cell accumulates over physical batches that are smaller than the logical one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.adapter import AdaptedModel
from client.clipping import CLIPPERS, make_clipper
from client.examples import Example
from client.losses import collate
from client.quantization import QUANTIZATIONS
from client.training import TrainSettings, train_private
from shared.errors import UnsupportedModel
from shared.privacy.noise import NoiseSource
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
FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen2"]
CHECKPOINTING = ["off", "plain", "reentrant"]
TOLERANCE = 1e-6
PHYSICAL = 3
LOGICAL = 8

Masks = dict[str, list[torch.Tensor]]


def dropouts(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the dropout of every adapted layer under the layer's name."""
    for name, module in model.named_modules():
        if name.endswith("lora_dropout.default"):
            yield name, module


@contextmanager
def recording(model: AdaptedModel) -> Iterator[Masks]:
    """Note the mask of every call of every dropout, as factors on its input."""
    masks: Masks = defaultdict(list)

    def note(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            if module.training:
                kept = output.detach() != 0
                masks[name].append(kept.double() / (1.0 - model.dropout))
                # A zero would hide its mask; only padding, embedded as zeros, may be zero.
                seen = inputs[0][(inputs[0] != 0).any(dim=-1)]
                assert bool((seen != 0).all()), name

        return hook

    with ExitStack() as stack:
        for name, module in dropouts(model.peft_model):
            stack.enter_context(module.register_forward_hook(note(name)))
        yield masks


def masks_of_examples(
    masks: Masks, examples: Sequence[Example], engine: str, calls: int
) -> list[dict[str, torch.Tensor]]:
    """Return each example's own mask per layer, ``(1, length, d_in)``.

    Args:
        masks: what was recorded, in the order of calls.
        examples: of the logical batch.
        engine: ``"microbatch"`` sees one example a call, the others ``PHYSICAL``.
        calls: how often a layer runs on one batch: twice under checkpointing.
    """
    size = 1 if engine == "microbatch" else PHYSICAL
    found: list[dict[str, torch.Tensor]] = [{} for _ in examples]
    for name, drawn in masks.items():
        assert len(drawn) == calls * math.ceil(len(examples) / size), name
        forward = drawn if calls == 1 else _forward_calls(drawn, engine)
        for index, example in enumerate(examples):
            row = forward[index // size][index % size]
            found[index][name] = row[None, : example.ids.size]
    return found


def _forward_calls(drawn: list[torch.Tensor], engine: str) -> list[torch.Tensor]:
    """Return the masks of first passes; recomputation must have drawn the same again.

    Each physical batch runs forwards once and is recomputed once before the next one starts.
    """
    first, second = drawn[0::2], drawn[1::2]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), engine
    return first


def truth_with_masks(
    truth: torch.nn.Module, examples: Sequence[Example], masks: list[dict[str, torch.Tensor]]
) -> torch.Tensor:
    """Return each example's float64 gradient under its own dropout masks, ``(n, parameters)``."""
    rows = []
    for example, own in zip(examples, masks, strict=True):
        with ExitStack() as stack:
            for name, module in dropouts(truth):
                mask = own[name]

                def masked(
                    _: torch.nn.Module, x: Any, __: torch.Tensor, mask: torch.Tensor = mask
                ) -> torch.Tensor:
                    product: torch.Tensor = x[0] * mask
                    return product

                stack.enter_context(module.register_forward_hook(masked))
            rows.append(truth_gradients(truth, [example]))
    return torch.cat(rows)


def accumulated(
    model: AdaptedModel, engine: str, examples: Sequence[Example], bound: float
) -> torch.Tensor:
    """Return the clipped sum of a logical batch from smaller physical ones."""
    total = torch.zeros(model.spec.size(model.kinds), dtype=torch.float64)
    with model.training(), make_clipper(engine, model) as clipper:
        for start in range(0, len(examples), PHYSICAL):
            batch = collate(examples[start : start + PHYSICAL], 0)
            total += torch.cat([g.reshape(-1) for g in clipper.clipped_sum(batch, bound)])
    return total


class Oracle:
    """The truth of one stored base, and what it found for masks that it has seen.

    Engines that split a batch alike draw the same masks from one seed, checkpointed or not.
    """

    def __init__(self, model: AdaptedModel, folder: Path) -> None:
        self._truth = _with_dropout(truth_model(model, folder))
        self._examples = make_examples(LOGICAL)
        self._plain = truth_gradients(self._truth, self._examples)
        self._masked: dict[bytes, torch.Tensor] = {}
        self.bound = float(self._plain.norm(dim=1).median())

    def clipped_sum(self, own: list[dict[str, torch.Tensor]] | None = None) -> torch.Tensor:
        """Return the sum under each example's own masks, or without dropout."""
        if own is None:
            return truth_clipped_sum(self._plain, self.bound)
        key = b"".join(row[name].numpy().tobytes() for row in own for name in sorted(row))
        if key not in self._masked:
            self._masked[key] = truth_with_masks(self._truth, self._examples, own)
        return truth_clipped_sum(self._masked[key], self.bound)


def cell_error(model: AdaptedModel, oracle: Oracle, engine: str, checkpointing: str) -> float:
    """Return one cell's relative distance from the truth."""
    examples = make_examples(LOGICAL)
    with torch.random.fork_rng(devices=[]), recording(model) as masks:
        torch.manual_seed(11)
        found = accumulated(model, engine, examples, oracle.bound)
    if model.dropout == 0:
        return relative_error(found, oracle.clipped_sum())
    calls = 1 if checkpointing == "off" else 2
    own = masks_of_examples(masks, examples, engine, calls)
    return relative_error(found, oracle.clipped_sum(own))


def _with_dropout(truth: torch.nn.Module) -> torch.nn.Module:
    """Give the truth a module where the adapter has its dropout; a hook sets what it does."""
    for _, module in truth.named_modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Identity()
    return truth


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_equals_float64_truth(
    adapted: MakeAdapted, model_folder: MakeFolder, family: str, quantization: str, tied: bool
) -> None:
    """No cell is skipped; the one that cannot work (Opacus' hooks, recomputed) is refused."""
    folder = model_folder(family, tie_word_embeddings=tied)
    oracle = None
    for dropout in (0.0, 0.3):
        model = adapted(
            family, quantization=quantization, dropout=dropout, tie_word_embeddings=tied
        )
        oracle = oracle or Oracle(model, folder)
        for checkpointing in CHECKPOINTING:
            if checkpointing != "off":
                model.enable_checkpointing(reentrant=checkpointing == "reentrant")
            for engine in ENGINES:
                if engine == "opacus" and checkpointing == "plain":
                    with pytest.raises(UnsupportedModel, match="not reentrant"):
                        make_clipper(engine, model)
                    continue
                error = cell_error(model, oracle, engine, checkpointing)
                assert error <= TOLERANCE, (dropout, checkpointing, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_where_float32_itself_is_coarser_the_clipper_adds_nothing(
    adapted: MakeAdapted, model_folder: MakeFolder, quantization: str, engine: str
) -> None:
    """Qwen 3 divides tiny heads by their norm: plain float32 autograd is off by up to 1e-6."""
    model = adapted("qwen3", quantization=quantization)
    examples = make_examples(LOGICAL)
    truth = truth_model(model, model_folder("qwen3"))
    gradients = truth_gradients(truth, examples)
    plain = truth_gradients(truth.float(), examples)
    bound = float(gradients.norm(dim=1).median())
    expected = truth_clipped_sum(gradients, bound)
    floor = relative_error(truth_clipped_sum(plain, bound), expected)
    found = relative_error(accumulated(model, engine, examples, bound), expected)
    assert found <= max(TOLERANCE, 2 * floor)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("family", "quantization", "checkpointing"),
    [("llama", "int4", "off"), ("gpt2", "nf4", "reentrant"), ("gpt_neox", "int8", "off")],
)
def test_a_few_cells_with_dropout_equal_float64_truth(
    adapted: MakeAdapted,
    model_folder: MakeFolder,
    family: str,
    quantization: str,
    checkpointing: str,
    engine: str,
) -> None:
    model = adapted(family, quantization=quantization, dropout=0.3)
    if checkpointing == "reentrant":
        model.enable_checkpointing(reentrant=True)
    oracle = Oracle(model, model_folder(family))
    assert cell_error(model, oracle, engine, checkpointing) <= TOLERANCE


def test_the_truth_notices_masks_of_another_draw(
    adapted: MakeAdapted, model_folder: MakeFolder
) -> None:
    """The oracle has power: with the masks of another example the distance is large."""
    model = adapted(dropout=0.3)
    examples = make_examples(2, masked=False)
    examples = [examples[0], Example(ids=examples[0].ids + 1, labels=examples[0].labels + 1)]
    with torch.random.fork_rng(devices=[]), recording(model) as masks:
        torch.manual_seed(1)
        truth = _with_dropout(truth_model(model, model_folder()))
        found = accumulated(model, "fused", examples, math.inf)
    own = masks_of_examples(masks, examples, "fused", 1)
    right = truth_with_masks(truth, examples, own).sum(dim=0)
    wrong = truth_with_masks(truth, examples, own[::-1]).sum(dim=0)
    assert relative_error(found, right) <= TOLERANCE
    assert relative_error(found, wrong) > 1e-2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_empty_poisson_batch_is_noise_alone(
    adapted: MakeAdapted, quantization: str, engine: str
) -> None:
    """Nothing but the noise of the source moves the adapter, with and without examples to draw."""
    model = adapted(quantization=quantization, kinds="B")
    examples = make_examples(3)
    for have, probability in ((examples, 1e-12), ([], 0.5)):
        before = model.read_vector("B")
        steps = train_private(
            model,
            have,
            TrainSettings(local_steps=1, batch_size=4, learning_rate=8.0, clipper=engine),
            max_grad_norm=0.5,
            noise_multiplier=2.0,
            sampling_probability=probability,
            source=NoiseSource.seeded(5),
        )
        twin = NoiseSource.seeded(5)
        assert twin.poisson_subsample(len(have), probability).size == 0
        noise = twin.normal(model.spec.size("B"))
        assert steps == 1
        moved = model.read_vector("B") - before
        assert np.allclose(moved, -8.0 * 2.0 * 0.5 * noise / 4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_physical_batches_do_not_show_in_a_private_step(
    adapted: MakeAdapted, model_folder: MakeFolder, engine: str
) -> None:
    """A step through train_private, physical below logical, against the truth in float64."""
    model = adapted(quantization="int4")
    examples = make_examples(7)
    gradients = truth_gradients(truth_model(model, model_folder()), examples)
    bound = float(gradients.norm(dim=1).median())
    rate = 1e3  # so that the step, and not the rounding of the factors, decides the error
    before = model.read_vector("AB").astype(np.float64)
    train_private(
        model,
        examples,
        TrainSettings(
            local_steps=1, batch_size=7, learning_rate=rate, physical_batch=3, clipper=engine
        ),
        max_grad_norm=bound,
        noise_multiplier=1e-12,
        sampling_probability=1.0,
        source=NoiseSource.seeded(5),
    )
    moved = torch.from_numpy(before - model.read_vector("AB")) * 7 / rate
    assert relative_error(moved, truth_clipped_sum(gradients, bound)) <= TOLERANCE


def first_gradient(
    model: AdaptedModel, engine: str, first: Example, others: Sequence[Example]
) -> torch.Tensor:
    """Return the first example's part of a batch's sum: the sum with it less that without."""
    with model.training(), make_clipper(engine, model) as clipper:
        both = clipper.clipped_sum(collate([first, *others], 0), math.inf)
        rest = clipper.clipped_sum(collate(others, 0), math.inf)
    return torch.cat([(b - r).reshape(-1) for b, r in zip(both, rest, strict=True)])


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def backend(request: pytest.FixtureRequest, model_folder: MakeFolder) -> AdaptedModel:
    """A tiny model on each kind of stored base."""
    from client.adapter import adapt
    from client.model import load_base
    from shared.lora import initial_factors

    base = load_base(str(model_folder()), quantization=str(request.param))
    model = adapt(base, r=4, alpha=8, target_modules="all-linear")
    model.load(initial_factors(model.spec, 3))
    size = model.spec.size("B")
    vector = 0.1 * np.random.default_rng(8).standard_normal(size).astype(np.float32)
    model.load_vector(vector, "B")
    return model


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(seeds=st.tuples(st.integers(0, 999), st.integers(1000, 9999)), count=st.integers(1, 4))
@pytest.mark.parametrize("engine", ENGINES)
def test_examples_are_separable_on_every_backend(
    backend: AdaptedModel, engine: str, seeds: tuple[int, int], count: int
) -> None:
    """Replace the rest of the batch: the gradient of example 0 stays what it was alone."""
    first, others = make_examples(1, seeds[0])[0], make_examples(count, seeds[1])
    with backend.training(), make_clipper(engine, backend) as clipper:
        alone = clipper.clipped_sum(collate([first], 0), math.inf)
    own = torch.cat([g.reshape(-1) for g in alone])
    found = first_gradient(backend, engine, first, others)
    # Two float32 sums are subtracted, so their rounding is in units of the larger one.
    assert float((found - own).norm()) <= 2e-6 * (float(own.norm()) + 10.0 * count)


def test_activations_quantised_per_tensor_are_caught(adapted: MakeAdapted) -> None:
    """The property has power: one scale for the whole batch's activations couples the examples."""
    model = adapted()
    first = make_examples(1)[0]

    def per_tensor(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        scale = args[0].detach().abs().max() / 127
        rounded = args[0] + ((args[0] / scale).round() * scale - args[0]).detach()
        return (rounded, *args[1:])

    block = model.base.model.get_submodule("model.layers.1.mlp.up_proj")
    found = []
    with block.register_forward_pre_hook(per_tensor):
        for seed in (1, 2):
            others = make_examples(3, seed=seed)
            found.append(first_gradient(model, "fused", first, others))
    assert float((found[0] - found[1]).norm() / found[0].norm()) > 1e-5
