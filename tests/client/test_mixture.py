"""A mixture's gates and gradients equal a float64 truth that loops over adapters and places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from client.adapter import AdaptedModel, adapt
from client.adapterspec import adapter_spec
from client.answering.withtorch import TorchEngine
from client.clipping import make_clipper
from client.evaluation import sequence_losses
from client.examples import Example
from client.generation import Generator
from client.gradientcheck import require_gradient
from client.grouped import GroupedAdapter
from client.losses import Batch, collate, per_sequence_losses
from client.mixture import keep_rows
from client.model import frozen_digest, load_base, quiet
from shared.errors import AdapterIncompatible, UnsupportedModel
from shared.lora import AdapterSpec, initial_factors
from shared.mixture import ROUTER, Mixture
from tests.client.conftest import (
    MakeFolder,
    make_examples,
    relative_error,
    truth_clipped_sum,
)

K, RANK, SHARPNESS = 3, 2, 2.5
MIXTURE = Mixture(adapters=K, sharpness=SHARPNESS)
Make = Callable[..., AdaptedModel]


@pytest.fixture
def mixed(model_folder: MakeFolder) -> Make:
    def make(
        family: str = "llama", *, quantization: str = "none", kinds: str = "AB", **options: Any
    ) -> AdaptedModel:
        base = load_base(str(model_folder(family)), quantization=quantization)
        model = adapt(
            base, r=K * RANK, alpha=8, target_modules="all-linear", mixture=MIXTURE, **options
        )
        rng = np.random.default_rng(3)
        model.load_vector(0.3 * rng.standard_normal(model.spec.size()).astype(np.float32), "AB")
        model.set_trainable(kinds)
        return model

    return make


class Truth:
    """The definition, in float64: every adapter by itself, gates place by place."""

    def __init__(self, model: AdaptedModel, folder: Path) -> None:
        loader: Any = AutoModelForCausalLM
        with quiet():
            self.plain = loader.from_pretrained(folder, dtype=torch.float64).eval()
        self.plain.requires_grad_(False)
        self.spec, self.gates = model.spec, torch.zeros(0)
        self.values = {
            name: torch.from_numpy(value).double().requires_grad_()
            for name, value in model.factors().items()
        }
        for name in sorted(n for n in self.values if n.endswith("lora_A.weight")):
            stem = name.removesuffix("A.weight")
            module = self.plain.get_submodule(
                stem.removeprefix("base_model.model.").removesuffix(".lora_")
            )
            module.register_forward_hook(self._adder(stem))

    def _adder(self, stem: str) -> Callable[..., torch.Tensor]:
        def add(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            del module
            a, b = self.values[f"{stem}A.weight"], self.values[f"{stem}B.weight"]
            for k in range(K):
                rows = slice(k * RANK, (k + 1) * RANK)
                product = b[:, rows] @ a[rows]
                output = output + self.spec.scale * self.gates[:, k, None] * (args[0] @ product.T)
            return output

        return add

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of one text, ``(T, vocabulary)``."""
        embeddings = self.plain.get_input_embeddings()
        every = embeddings(torch.arange(embeddings.weight.shape[0]))
        router = self.values[f"base_model.model.{ROUTER}.weight"]
        places = []
        for t in range(len(ids)):
            h = embeddings(ids[: t + 1]).mean(dim=0) - every.mean(dim=0)
            places.append(torch.softmax(SHARPNESS * router @ (h / h.norm()), dim=0))
        self.gates = torch.stack(places)
        found: torch.Tensor = self.plain(input_ids=ids[None], use_cache=False).logits[0]
        return found

    def gradients(self, examples: Sequence[Example], kinds: str) -> torch.Tensor:
        """Return each example's gradient, ``(n, d)``, in canonical order."""
        wanted = [self.values[factor.name] for factor in self.spec.of_kind(kinds)]
        rows = []
        for example in examples:
            ids = torch.from_numpy(example.ids)
            said = torch.log_softmax(self.logits(ids), dim=1)
            losses = [
                -said[t, label] for t, label in enumerate(example.labels[1:].tolist()) if label >= 0
            ]
            found = torch.autograd.grad(torch.stack(losses).mean(), wanted)
            rows.append(torch.cat([piece.reshape(-1) for piece in found]))
        return torch.stack(rows)


def flat_sum(model: AdaptedModel, engine: str, batch: Batch, bound: float) -> torch.Tensor:
    with model.training(), make_clipper(engine, model) as clipper:
        return torch.cat([g.reshape(-1) for g in clipper.clipped_sum(batch, bound)])


@pytest.mark.parametrize("engine", ["fused", "microbatch"])
@pytest.mark.parametrize("kinds", ["AB", "B"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_clipped_sums_equal_the_definition(
    mixed: Make, model_folder: MakeFolder, family: str, kinds: str, engine: str
) -> None:
    model, examples = mixed(family, kinds=kinds), make_examples(5)
    gradients = Truth(model, model_folder(family)).gradients(examples, kinds)
    bound = float(gradients.norm(dim=1).median())
    found = flat_sum(model, engine, collate(examples, 0), bound)
    assert relative_error(found, truth_clipped_sum(gradients, bound)) <= 1e-5
    router = [f.routes for f in model.spec.of_kind(kinds) for _ in range(f.size)]
    share = gradients[:, torch.tensor(router)].norm() / gradients.norm()
    assert share > 1e-3  # the router is in the norm, and the comparison above sees it


@pytest.mark.parametrize("engine", ["fused", "microbatch"])
def test_checkpointing_and_quantised_bases_keep_the_gradient(mixed: Make, engine: str) -> None:
    examples = make_examples(4)
    batch = collate(examples, 0)
    plain = mixed(quantization="int4")
    before = flat_sum(plain, engine, batch, 1.0)
    plain.enable_checkpointing()
    assert relative_error(flat_sum(plain, engine, batch, 1.0), before) <= 1e-6


def test_a_frozen_router_gets_no_gradient_and_is_no_b(mixed: Make) -> None:
    model = mixed(kinds="B", frozen_router=True)
    assert not any(factor.routes for factor in model.spec.of_kind("B"))
    found = flat_sum(model, "fused", collate(make_examples(3), 0), 1.0)
    assert found.numel() == model.spec.size("B")


def test_neither_padding_nor_other_texts_nor_later_tokens_move_a_gate(mixed: Make) -> None:
    model = mixed()
    assert model.router is not None
    ids = torch.tensor([[5, 9, 7, 3]])

    def gates(rows: torch.Tensor) -> torch.Tensor:
        assert model.router is not None
        with torch.no_grad():
            model.peft_model(input_ids=rows, use_cache=False)
        assert model.router.gates is not None
        return model.router.gates.view(K, *rows.shape)

    alone = gates(ids)
    padded = torch.tensor([[5, 9, 7, 3, 0, 0, 0], [8, 8, 4, 6, 12, 40, 33]])
    torch.testing.assert_close(gates(padded)[:, :1, :4], alone)
    other_end = torch.tensor([[5, 9, 7, 60]])
    torch.testing.assert_close(gates(other_end)[:, :, :3], alone[:, :, :3])
    assert not torch.allclose(gates(other_end)[:, :, 3], alone[:, :, 3])
    torch.testing.assert_close(alone.sum(dim=0), torch.ones(1, 4))


def test_an_examples_gradient_does_not_know_its_neighbours(mixed: Make) -> None:
    model = mixed()
    examples = make_examples(6, seed=4)
    with make_clipper("fused", model) as clipper:
        first = clipper.clipped_sum(collate(examples[:1], 0), 1.0)
        rest = clipper.clipped_sum(collate(examples[1:], 0), 1.0)
        together = clipper.clipped_sum(collate(examples, 0), 1.0)
    for one, other, both in zip(first, rest, together, strict=True):
        torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-6)


def test_writing_with_a_cache_chooses_what_a_whole_pass_chooses(mixed: Make) -> None:
    model = mixed()
    generator = Generator(engine=TorchEngine(model.peft_model, model.base.tokenizer))
    tokens: list[int] = []
    answer = generator.answer("w2 w6 w4", max_tokens=12, temperature=0.0, top_k=1, seed=0)
    ends = generator.engine.ends
    with torch.inference_mode():
        while len(tokens) < 12:
            rows = torch.tensor([generator._encode("w2 w6 w4", 12)[0] + tokens])
            token = int(model.peft_model(input_ids=rows, use_cache=False).logits[0, -1].argmax())
            if token in ends:
                break
            tokens.append(token)
    assert answer.tokens == len(tokens) > 0
    assert answer.text.split() == str(model.base.tokenizer.decode(tokens)).split()


def test_two_texts_may_be_written_in_turn(mixed: Make) -> None:
    model = mixed()
    generator = Generator(engine=TorchEngine(model.peft_model, model.base.tokenizer))
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "top_k": 1, "seed": 0}
    alone = ["".join(generator.pieces(text, **options)) for text in ("w2 w9", "w30 w31 w32")]
    both = [generator.pieces(text, **options) for text in ("w2 w9", "w30 w31 w32")]
    written = ["", ""]
    for _ in range(8):
        for index, pieces in enumerate(both):
            written[index] += next(pieces, "")
    assert written == alone


def test_texts_padded_on_the_left_and_dropped_from_a_cache_keep_their_gates(mixed: Make) -> None:
    model = mixed()
    texts = [[5, 9, 7, 3], [8, 4]]
    rows = torch.tensor([texts[0], [0, 0, *texts[1]]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        output = model.peft_model(
            input_ids=rows, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        )
        cache = model.peft_model(
            input_ids=rows,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
        ).past_key_values
        keep_rows(cache, torch.tensor([1]))
        going_on = model.peft_model(
            input_ids=torch.tensor([[6]]),
            attention_mask=torch.tensor([[0, 0, 1, 1, 1]]),
            position_ids=torch.tensor([[2]]),
            past_key_values=cache,
            use_cache=True,
        )
        alone = model.peft_model(input_ids=torch.tensor([[8, 4, 6]]), use_cache=False).logits
    torch.testing.assert_close(output.logits[1, 3], alone[0, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(going_on.logits[0, 0], alone[0, 2], rtol=1e-4, atol=1e-5)


def test_a_foreign_cache_is_refused(mixed: Make) -> None:
    from transformers import DynamicCache

    model = mixed()
    cache = DynamicCache()
    with torch.no_grad():
        model.peft_model(input_ids=torch.tensor([[4, 5]]), past_key_values=cache, use_cache=True)
        del cache._fedslm_route  # type: ignore[attr-defined]
        with pytest.raises(UnsupportedModel, match="did not fill"):
            model.peft_model(input_ids=torch.tensor([[6]]), past_key_values=cache, use_cache=True)


def test_a_new_mixture_is_the_base_and_its_adapters_learn_apart(model_folder: MakeFolder) -> None:
    base = load_base(str(model_folder()))
    digest = frozen_digest(base.model)
    examples = make_examples(4)
    model = adapt(base, r=K * RANK, alpha=8, target_modules="all-linear", mixture=MIXTURE)
    model.load(initial_factors(model.spec, 5))
    with model.disabled():
        bare = sequence_losses(model, examples, batch_size=4)
    np.testing.assert_allclose(sequence_losses(model, examples, batch_size=4), bare, rtol=1e-6)
    model.set_trainable("B")
    step = flat_sum(model, "fused", collate(examples, 0), 1.0)
    sent = model.spec.unflatten(step.numpy(), "B")
    for name, value in sent.items():
        if name.endswith("lora_B.weight"):
            blocks = np.split(value, K, axis=1)
            for one in range(K):
                for other in range(one):
                    assert np.linalg.norm(blocks[one] - blocks[other]) > 0.1 * np.linalg.norm(value)
    assert frozen_digest(model.base.model) == digest
    assert model.release().model is base.model
    assert not any(ROUTER in name for name, _ in base.model.named_modules())
    assert not base.model.base_model._forward_pre_hooks


def test_what_a_mixture_cannot_do_is_refused(mixed: Make) -> None:
    model = mixed()
    with pytest.raises(UnsupportedModel, match="gates"), model.plain_peft():
        pass
    with pytest.raises(UnsupportedModel, match="reentrant"):
        model.enable_checkpointing(reentrant=True)
    with pytest.raises(UnsupportedModel):
        make_clipper("opacus", model).__enter__()
    assert model.router is not None
    model.router.record(2)
    batch = collate(make_examples(3), 0)
    with pytest.raises(UnsupportedModel, match="3 texts for 2 examples"):
        per_sequence_losses(model.peft_model, batch)
    model.router.record(0)
    with pytest.raises(AdapterIncompatible, match="rank 7"):
        adapter_spec(model.base, r=7, alpha=8, target_modules="all-linear", mixture=MIXTURE)


def test_the_specification_survives_json(mixed: Make) -> None:
    spec = mixed().spec
    assert AdapterSpec.from_json(spec.to_json()) == spec
    changed = {**spec.to_json(), "mixture": {"adapters": 2, "sharpness": 1.0}}
    with pytest.raises(AdapterIncompatible):
        AdapterSpec.from_json(changed)


def test_a_step_for_devices_without_torch_is_refused(mixed: Make) -> None:
    from client.edge.trace import trace_step

    with pytest.raises(UnsupportedModel, match="mixture"):
        trace_step(mixed(), length=16, max_grad_norm=1.0)


@pytest.mark.parametrize("kinds", ["B", "AB"])
@pytest.mark.parametrize("bound", [None, 0.5])
def test_clients_side_by_side_have_routers_of_their_own(
    mixed: Make, kinds: str, bound: float | None
) -> None:
    """Against one client's factors at a time, by the engine that other tests hold to the truth."""
    model, owners = mixed(kinds=kinds), (1, 0, 1, 3, 1)
    examples, adapter = make_examples(len(owners)), GroupedAdapter(model, 4)
    generator = torch.Generator().manual_seed(5)
    adapter.flat += 0.3 * torch.randn(adapter.flat.shape, generator=generator)
    adapter.moved = True
    total = torch.zeros(adapter.flat.shape, dtype=torch.float32 if bound is None else torch.float64)
    with model.training(), adapter.attached():
        batch = collate(examples, 0)
        if bound is None:
            adapter.add_sums(batch, torch.tensor(owners), total)
        else:
            adapter.add_clipped_sums(batch, torch.tensor(owners), bound, total)
    expected = torch.zeros(adapter.flat.shape, dtype=torch.float64)
    for owner, example in zip(owners, examples, strict=True):
        model.load_vector(adapter.flat[owner].numpy(), kinds)
        limit = float("inf") if bound is None else bound
        expected[owner] += flat_sum(model, "microbatch", collate([example], 0), limit)
    assert relative_error(total.double(), expected) <= 1e-5
    assert model.router is not None
    assert model.router.weights is None


def test_a_router_is_expected_to_get_a_gradient_once_a_b_is_not_zero(mixed: Make) -> None:
    model = mixed(kinds="B")
    moved = model.factors()
    model.load(initial_factors(model.spec, 5))
    require_gradient(model)
    model.load(moved)
    require_gradient(model)
    # Adapters that are all alike leave a router nothing to choose.
    alike = {
        name: np.zeros_like(value) if ROUTER in name else value for name, value in moved.items()
    }
    for name, value in moved.items():
        if ".lora_A." in name:
            alike[name] = np.tile(value[:RANK], (K, 1))
        elif ".lora_B." in name:
            alike[name] = np.tile(value[:, :RANK], (1, K))
    model.load(alike)
    gradient = flat_sum(model, "fused", collate(make_examples(2), 0), 1.0)
    (router,) = (v for n, v in model.spec.unflatten(gradient.numpy(), "B").items() if ROUTER in n)
    assert np.abs(router).max() <= 1e-6
