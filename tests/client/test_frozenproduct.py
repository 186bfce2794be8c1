"""Products in bfloat16: their numbers, and that they bound what one example changes.

The oracle of a product is float64 on operands that were rounded by their definition. A result is
rounded once more, so it lies within half a step of bfloat16 (2**-8 of it), beside what float32
sums lose.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from client import frozenproduct
from client.adapter import AdaptedModel
from client.clipping import CLIPPERS, FusedClipper, make_clipper
from client.examples import Example
from client.frozenproduct import frozen_product, frozen_way_back
from client.gradientcheck import require_gradient
from client.grouped import GroupedAdapter
from client.losses import collate
from client.model import load_base
from client.quantization import dequantize, linear_modules, stored_weight
from client.training import TrainSettings, train_private
from shared.errors import ConflictingSettings, InvalidValue, UnsupportedModel
from shared.privacy.noise import NoiseSource
from tests.client.conftest import VOCABULARY, MakeAdapted, MakeFolder, make_examples

HALF: dict[str, Any] = {"quantization": "nf4", "compute_dtype": "bfloat16"}
BOUND = 0.05


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Round float32 to 8 bits of significand, ties to even, by its bits."""
    bits = values.contiguous().view(torch.int32)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF
    return kept.view(torch.float32)


def require_rounded_once(found: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    exact = left.double() @ right.double()
    size = left.double().abs() @ right.double().abs()
    assert found.dtype == torch.float32
    assert torch.equal(found, rounded(found))
    assert bool(((found - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * size).all())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "torchao-int8", "int4"])
def test_a_product_is_of_rounded_numbers_and_rounded_once(
    model_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    quantization: str,
    *,
    cache: bool,
    native: bool,
) -> None:
    """Both ways of a processor, with instructions for it and without; both directions."""
    if not native:
        monkeypatch.setattr(frozenproduct, "multiplies_in_bfloat16", lambda: False)
    base = load_base(
        str(model_folder()),
        quantization=quantization,
        compute_dtype="bfloat16",
        cache_dequantized=cache,
    )
    generator = torch.Generator().manual_seed(1)
    for _, module in linear_modules(base.model):
        weight = dequantize(module)
        assert torch.equal(stored_weight(module)[0], weight)
        rows = torch.randn(7, weight.shape[1], generator=generator)
        grad = torch.randn(7, weight.shape[0], generator=generator)
        require_rounded_once(frozen_product(rows, module), rounded(rows), rounded(weight).t())
        require_rounded_once(frozen_way_back(grad, module), rounded(grad), rounded(weight))


def test_a_bias_is_added_in_float32(model_folder: MakeFolder) -> None:
    base = load_base(str(model_folder("gpt2")), **HALF)
    module = next(module for _, module in linear_modules(base.model))
    rows = torch.randn(3, dequantize(module).shape[1], generator=torch.Generator().manual_seed(2))
    bias: Any = module.bias
    bias.data.fill_(1 / 3)
    found = frozen_product(rows, module)
    bias.data.zero_()
    assert torch.equal(found, frozen_product(rows, module) + 1 / 3)


def flat(model: AdaptedModel, engine: str, examples: list[Example], bound: float) -> torch.Tensor:
    with model.training(), make_clipper(engine, model) as clipper:
        found = clipper.clipped_sum(collate(examples, 0), bound)
    return torch.cat([one.reshape(-1) for one in found])


def ragged(sizes: tuple[int, ...]) -> list[Example]:
    rng = np.random.default_rng(4)
    drawn = [rng.integers(3, VOCABULARY, size).astype(np.int64) for size in sizes]
    return [Example(ids=ids, labels=ids.copy()) for ids in drawn]


RAGGED = (3, 21, 32, 50, 64, 64, 9, 20)


def by_size(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product that is added up in as many parts as the number of rows says, as a library's may.

    torch lets CUDA's libraries round such parts to bfloat16, as is done here.
    """
    parts = 1 + left.numel() // left.shape[-1] % 3
    total = torch.zeros(*left.shape[:-1], right.shape[1], dtype=torch.bfloat16)
    for one, other in zip(rounded(left).chunk(parts, dim=-1), right.chunk(parts), strict=True):
        total += (one @ other.float()).to(torch.bfloat16)
    return total


@pytest.mark.parametrize(
    ("engine", "family", "checkpointing"),
    [
        ("fused", "llama", False),
        ("fused", "gpt2", True),
        ("microbatch", "llama", False),
        ("opacus", "gpt2", False),
    ],
)
@pytest.mark.parametrize("library", ["own", "by size"])
def test_one_example_changes_a_sum_by_its_own_clipped_gradient_and_no_more(
    adapted: MakeAdapted,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    family: str,
    library: str,
    *,
    checkpointing: bool,
) -> None:
    """With neighbours of every length: the bound holds to 1e-9, not to bfloat16's 4e-3."""
    if library == "by size":
        monkeypatch.setattr(frozenproduct, "_half_product", by_size)
    model = adapted(family, **HALF)
    if checkpointing:
        model.enable_checkpointing(reentrant=True)
    examples = ragged(RAGGED)
    alone = [flat(model, engine, [example], BOUND) for example in examples]
    assert sum(float(one.norm()) > BOUND * (1 - 1e-9) for one in alone) >= 4
    for size in (2, 5, 8):
        whole = flat(model, engine, examples[:size], BOUND)
        for left in (0, size - 1):
            members = [example for place, example in enumerate(examples[:size]) if place != left]
            less = flat(model, engine, members, BOUND)
            assert float((whole - less).norm()) <= BOUND * (1 + 1e-9)
            assert float((whole - less - alone[left]).norm()) <= 1e-9 * BOUND


def test_a_pass_shared_with_neighbours_would_break_the_bound(
    adapted: MakeAdapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why examples go alone: an engine that is given them all moves each one's neighbours."""
    monkeypatch.setattr(frozenproduct, "_half_product", by_size)
    model = adapted(**HALF)
    examples = ragged(RAGGED)
    moved = []
    with model.training(), FusedClipper(model) as clipper:
        for size in (2, 5, 8):
            groups = examples[:size], examples[: size - 1], examples[size - 1 : size]
            sums = [clipper.clipped_sum(collate(rows, 0), BOUND) for rows in groups]
            whole, less, own = (torch.cat([o.reshape(-1) for o in found]) for found in sums)
            moved.append(float((whole - less - own).norm()) / BOUND)
    assert max(moved) > 1e-3


@pytest.mark.parametrize("engine", ["fused", "microbatch"])
def test_factors_and_their_gradients_stay_in_float32(adapted: MakeAdapted, engine: str) -> None:
    """The norm that is clipped is that of what is summed: clipped twice changes nothing."""
    model = adapted(**HALF)
    (example,) = make_examples(1)
    plain = flat(model, engine, [example], math.inf)
    clipped = flat(model, engine, [example], BOUND)
    assert {p.dtype for _, p in model.trainable} == {torch.float32}
    assert not torch.equal(plain.float(), rounded(plain.float()))
    assert float((clipped - plain * (BOUND / plain.norm())).norm()) <= 1e-9 * BOUND


def test_gradients_are_those_of_float32_to_bfloat16s_rounding(adapted: MakeAdapted) -> None:
    """8 bits a product, a few dozen products, errors that do not add up in line: within 3 %."""
    examples = make_examples(4)
    exact = flat(adapted(quantization="nf4"), "fused", examples, math.inf)
    for cache in (False, True):
        half = flat(adapted(**HALF, cache=cache), "fused", examples, math.inf)
        assert 1e-4 < float((half - exact).norm() / exact.norm()) < 0.03


def test_engines_and_the_cache_agree_bit_for_bit_or_to_float32s_rounding(
    adapted: MakeAdapted,
) -> None:
    """One example, no neighbours: what differs is the order of float32 sums, then spread."""
    examples = make_examples(3)
    found = {engine: flat(adapted(**HALF), engine, examples, math.inf) for engine in CLIPPERS}
    cached = flat(adapted(**HALF, cache=True), "fused", examples, math.inf)
    assert torch.equal(cached, found["fused"])
    for one in found.values():
        assert float((one - found["fused"]).norm() / one.norm()) < 0.02


def test_how_many_go_through_at_once_changes_no_bit(adapted: MakeAdapted) -> None:
    """DP-SGD as clients run it, coins, clip and noise included."""
    vectors = []
    for at_once in (1, 3, 64):
        model = adapted(**HALF)
        train_private(
            model,
            make_examples(9),
            TrainSettings(local_steps=2, batch_size=4, learning_rate=0.5, physical_batch=at_once),
            max_grad_norm=BOUND,
            noise_multiplier=0.5,
            sampling_probability=0.6,
            source=NoiseSource.seeded(5),
        )
        vectors.append(model.read_vector("AB"))
    assert np.allclose(vectors[0], vectors[1], rtol=0, atol=1e-9)
    assert np.allclose(vectors[0], vectors[2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kinds", ["A", "B", "AB"])
def test_an_evaluation_first_and_every_factor_still_moves(adapted: MakeAdapted, kinds: str) -> None:
    require_gradient(adapted(**HALF, kinds=kinds))


def test_clients_are_not_computed_together(adapted: MakeAdapted) -> None:
    with pytest.raises(UnsupportedModel, match="neighbours"):
        GroupedAdapter(adapted(**HALF), 2)


def test_what_cannot_be_is_refused(model_folder: MakeFolder) -> None:
    with pytest.raises(ConflictingSettings, match="quantization='none'"):
        load_base(str(model_folder()), compute_dtype="bfloat16")
    with pytest.raises(InvalidValue, match="float16"):
        load_base(str(model_folder()), quantization="nf4", compute_dtype="float16")
