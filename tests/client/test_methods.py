"""IA3 and prompts: logits and gradients by example are those of PEFT's own models, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import AdaptedModel, adapt
from client.answering.withtorch import TorchEngine
from client.clipping import make_clipper
from client.evaluation import sequence_losses
from client.generation import Generator
from client.gradientcheck import require_gradient
from client.losses import Batch, collate, per_sequence_losses
from client.model import frozen_digest, load_base, quiet
from client.training import TrainSettings, train_plain
from server.adapters import read_adapter, write_adapter
from shared.adaptermethod import IA3, METHODS, PROMPT, Method
from shared.errors import AdapterIncompatible, UnsupportedModel
from shared.lora import AdapterSpec, initial_factors
from tests.client.conftest import MakeFolder, make_examples, relative_error, truth_clipped_sum

TOKENS = 3
Make = Callable[..., AdaptedModel]


@pytest.fixture
def vectors(model_folder: MakeFolder) -> Make:
    def make(method: str, family: str = "llama", *, quantization: str = "none") -> AdaptedModel:
        base = load_base(str(model_folder(family)), quantization=quantization)
        model = adapt(
            base, r=4, alpha=8, target_modules="all-linear", method=method, prompt_tokens=TOKENS
        )
        start = model.spec.flatten(initial_factors(model.spec, 7))
        drawn = np.random.default_rng(3).standard_normal(start.size).astype(np.float32)
        model.load_vector(start + 0.1 * drawn, "AB")
        return model

    return make


def written(model: AdaptedModel, folder: Path) -> Path:
    """Write the adapter as a run does."""
    write_adapter(
        folder,
        spec=model.spec,
        factors=model.factors(),
        base_model="tiny",
        dropout=0.0,
        manifest={},
    )
    return folder


def pefts_own(model: AdaptedModel, base: Path, folder: Path) -> Any:
    """Return PEFT's model in float64, from what is written to disk."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    with quiet(), torch.random.fork_rng(devices=[]):
        plain = loader.from_pretrained(base, dtype=torch.float64)
        theirs = PeftModel.from_pretrained(plain, written(model, folder))
    return theirs.double().eval()


def their_logits(theirs: Any, ids: torch.Tensor, ahead: int) -> torch.Tensor:
    """Return the logits at the places of the text."""
    logits: torch.Tensor = theirs(input_ids=ids, use_cache=False).logits
    return logits[:, ahead:]


def their_gradients(theirs: Any, model: AdaptedModel, batch: Batch) -> torch.Tensor:
    """Return one gradient a row, by autograd on one example after another."""
    own = {n.replace(".default", ""): p for n, p in theirs.named_parameters()}
    if model.spec.prepended:
        named = [p for n, p in own.items() if n.startswith("prompt_encoder")]
    else:
        named = [own[factor.name] for factor in model.spec.factors]
    for parameter in named:
        parameter.requires_grad_(True)
    rows = []
    for index in range(batch.ids.shape[0]):
        one = batch.row(index)
        logits = their_logits(theirs, one.ids, model.spec.prepended)[0, :-1]
        targets = one.labels[0, 1:]
        counted = targets != -100
        if not bool(counted.any()):
            rows.append(torch.zeros(model.spec.size(), dtype=torch.float64))
            continue
        loss = torch.nn.functional.cross_entropy(logits[counted], targets[counted])
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, named)]))
    return torch.stack(rows)


FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma3_text")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_pefts_and_gradients_are_a_loop_of_autograd(
    vectors: Make, model_folder: MakeFolder, tmp_path: Path, method: str, family: str
) -> None:
    model = vectors(method, family)
    theirs = pefts_own(model, model_folder(family), tmp_path)
    batch = collate(make_examples(5), 0)
    ids = batch.row(0).ids
    with torch.no_grad():
        found = model.peft_model(input_ids=ids, use_cache=False).logits
        assert relative_error(found, their_logits(theirs, ids, model.spec.prepended)) <= 2e-5
    truth = their_gradients(theirs, model, batch)
    bound = float(truth.norm(dim=1).median())
    wanted = truth_clipped_sum(truth, bound)
    for engine in ("fused", "microbatch"):
        with make_clipper(engine, model) as clipper:
            sums = clipper.clipped_sum(batch, bound)
        assert relative_error(torch.cat([s.reshape(-1) for s in sums]), wanted) <= 5e-5
    read = read_adapter(tmp_path, model.spec)
    assert all(np.array_equal(read[n], value) for n, value in model.factors().items())


@pytest.mark.parametrize("quantization", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("method", METHODS)
def test_quantised_bases_give_each_example_its_gradient(
    vectors: Make, method: str, quantization: str
) -> None:
    """After an evaluation too, which is where NF4 layers used to lose their gradient."""
    model = vectors(method, quantization=quantization)
    require_gradient(model)
    batch = collate(make_examples(4), 0)
    parameters = [parameter for _, parameter in model.trainable]
    alone = []
    for index in range(4):
        loss = per_sequence_losses(model.peft_model, batch.row(index)).sum()
        grads = torch.autograd.grad(loss, parameters)
        alone.append(torch.cat([g.reshape(-1) for g in grads]).double())
    truth = torch.stack(alone)
    bound = float(truth.norm(dim=1).median())
    with make_clipper("fused", model) as clipper:
        found = torch.cat([s.reshape(-1) for s in clipper.clipped_sum(batch, bound)])
    assert relative_error(found, truth_clipped_sum(truth, bound)) <= 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_no_gradient(vectors: Make, method: str) -> None:
    model = vectors(method)
    batch = collate(make_examples(4), 0)

    def summed() -> torch.Tensor:
        with model.training(), make_clipper("fused", model) as clipper:
            return torch.cat([s.reshape(-1) for s in clipper.clipped_sum(batch, 0.1)])

    plain = summed()
    model.enable_checkpointing()
    assert relative_error(summed(), plain) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_base_is_itself_where_the_adapter_is_off_or_gone(
    vectors: Make, model_folder: MakeFolder, method: str
) -> None:
    base = load_base(str(model_folder("llama")))
    ids = collate(make_examples(1), 0).ids
    with torch.no_grad():
        bare = base.model(input_ids=ids, use_cache=False).logits
    before = frozen_digest(base.model)
    model = vectors(method)
    with torch.no_grad():
        assert not torch.equal(model.peft_model(input_ids=ids, use_cache=False).logits, bare)
        with model.disabled():
            assert torch.equal(model.peft_model(input_ids=ids, use_cache=False).logits, bare)
    assert frozen_digest(model.peft_model) == before
    freed = model.release()
    with torch.no_grad():
        assert torch.equal(freed.model(input_ids=ids, use_cache=False).logits, bare)
    assert [n for n, _ in freed.model.named_parameters()] == [
        n for n, _ in base.model.named_parameters()
    ]


def test_ia3_starts_at_the_base_and_a_prompt_as_long_as_embeddings(
    vectors: Make, model_folder: MakeFolder
) -> None:
    ids = collate(make_examples(1), 0).ids
    model = vectors(IA3)
    model.load(initial_factors(model.spec, 7))
    with torch.no_grad():
        scaled = model.peft_model(input_ids=ids, use_cache=False).logits
        bare = load_base(str(model_folder("llama"))).model(input_ids=ids, use_cache=False).logits
    assert torch.equal(scaled, bare)
    prompted = vectors(PROMPT)
    embeddings: Any = prompted.base.model.get_input_embeddings()
    length = float(embeddings.weight.detach().square().mean().sqrt())
    start = initial_factors(prompted.spec, 7)["prompt_embeddings"]
    assert 0.5 <= float(np.sqrt(np.square(start).mean())) / length <= 2.0
    assert not np.array_equal(start, initial_factors(prompted.spec, 8)["prompt_embeddings"])


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_and_an_example_knows_no_other(vectors: Make, method: str) -> None:
    model = vectors(method)
    examples = make_examples(4, masked=False)
    before = sequence_losses(model, examples, batch_size=4)
    alone = [sequence_losses(model, [example], batch_size=1)[0] for example in examples]
    np.testing.assert_allclose(before, alone, rtol=1e-5)
    settings = TrainSettings(
        local_steps=20,
        local_epochs=None,
        batch_size=4,
        learning_rate=0.1,
        optimizer="adamw",
        physical_batch=4,
        clipper="fused",
    )
    train_plain(model, examples, settings, rng=np.random.default_rng(0))
    assert sequence_losses(model, examples, batch_size=4).sum() < 0.95 * before.sum()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_text_is_written_with_a_cache_as_without(vectors: Make, method: str, family: str) -> None:
    model = vectors(method, family)
    answer = Generator(engine=TorchEngine(model.peft_model, model.base.tokenizer)).answer(
        "w4 w5 w6", max_tokens=6, temperature=0.0, top_k=1, seed=0
    )
    ids = list(model.base.tokenizer("w4 w5 w6", add_special_tokens=False)["input_ids"])
    begin = model.base.tokenizer.bos_token_id
    ids = ids if begin is None else [begin, *ids]
    words = []
    for _ in range(answer.tokens):
        with torch.no_grad():
            logits = model.peft_model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
        words.append(ids[-1])
    wanted = str(model.base.tokenizer.decode(words, clean_up_tokenization_spaces=False))
    assert answer.text.split() == wanted.split()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_on_the_left_stays_between_a_prompt_and_its_text(
    vectors: Make, family: str
) -> None:
    """As audits write: a mask, places from the first real token, and then one token more."""
    model = vectors(PROMPT, family)
    text = torch.tensor([[5, 6, 7, 8]])
    padded = torch.tensor([[0, 0, 5, 6, 7]])
    mask, places = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 2]])
    with torch.no_grad():
        whole = model.peft_model(input_ids=text, use_cache=False).logits
        first = model.peft_model(
            input_ids=padded, attention_mask=mask, position_ids=places, use_cache=True
        )
        second = model.peft_model(
            input_ids=torch.tensor([[8]]),
            attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1]]),
            position_ids=torch.tensor([[3]]),
            past_key_values=first.past_key_values,
            use_cache=True,
        )
    assert relative_error(first.logits[:, 2:], whole[:, :3]) <= 1e-5
    assert relative_error(second.logits[:, 0], whole[:, 3]) <= 1e-5


def test_opacus_is_refused_for_what_it_does_not_know(vectors: Make) -> None:
    for method in METHODS:
        with pytest.raises(UnsupportedModel, match="opacus"):
            make_clipper("opacus", vectors(method))


def test_a_specification_says_its_method_and_nothing_else_has_one(vectors: Make) -> None:
    for method in METHODS:
        spec = vectors(method).spec
        assert AdapterSpec.from_json(spec.to_json()) == spec
        assert spec.pairs() == () == spec.layers
        assert spec.size("B") == spec.size("AB")
        unlike: list[object] = [{}, {"name": "lora", "feedforward": [], "spread": 1.0}, [], None]
        for broken in unlike:
            with pytest.raises(AdapterIncompatible):
                AdapterSpec.from_json({**spec.to_json(), "method": broken})
        other = IA3 if method == PROMPT else PROMPT
        with pytest.raises(AdapterIncompatible):
            AdapterSpec.from_json({**spec.to_json(), "method": Method(name=other).to_json()})
