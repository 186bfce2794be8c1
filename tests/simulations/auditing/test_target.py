"""The target against PEFT's own model in float64, text by text, and the library's generate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PreTrainedTokenizerFast

from client.adapter import AdaptedModel, adapt
from client.families import FAMILIES
from client.model import load_base
from server.audit.target import Passage, Reading, losses
from shared.errors import AuditError, InvalidValue
from shared.lora import initial_factors
from simulations.auditing import reading
from simulations.auditing.target import ModelTarget
from simulations.basepath import ASSETS
from tests.client.conftest import VOCABULARY, save_model, truth_model

Make = Callable[..., tuple[AdaptedModel, Path]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that loads a tiny model with a non-zero adapter."""
    root = tmp_path_factory.mktemp("targets")
    folders: dict[str, Path] = {}

    def build(
        family: str = "llama", *, quantization: str = "none", **changes: object
    ) -> tuple[AdaptedModel, Path]:
        key = f"{family}-{sorted(changes.items())}"
        if key not in folders:
            folders[key] = save_model(root / str(len(folders)), family, **changes)
        base = load_base(str(folders[key]), quantization=quantization)
        # The library reads Qwen2's folder with Qwen2's own rules, which know none of these words.
        words_only: Any = PreTrainedTokenizerFast
        base = replace(base, tokenizer=words_only.from_pretrained(folders[key]))
        model = adapt(base, r=4, alpha=8, target_modules="all-linear")
        model.load(initial_factors(model.spec, 7))
        rng = np.random.default_rng(8)
        model.load_vector(0.1 * rng.standard_normal(model.spec.size("B")).astype(np.float32), "B")
        return model, folders[key]

    return build


def words(rng: np.random.Generator, low: int = 2, high: int = 14) -> str:
    count = int(rng.integers(low, high))
    return " ".join(f"w{index}" for index in rng.integers(0, VOCABULARY - 3, size=count))


def passages(count: int = 9, seed: int = 0) -> list[Passage]:
    rng = np.random.default_rng(seed)
    return [
        Passage(text=words(rng), prompt=words(rng) if index % 3 == 0 else "")
        for index in range(count)
    ]


def ids_of(passage: Passage, tokenizer: Any) -> tuple[list[int], int]:
    """Token ids and the position of the first scored one: no start token here, an end token."""
    body = tokenizer(passage.text, add_special_tokens=False)["input_ids"]
    before = (
        tokenizer(passage.prompt + "\n", add_special_tokens=False)["input_ids"]
        if passage.prompt
        else []
    )
    return [*before, *body, tokenizer.eos_token_id], max(len(before), 1)


def truth(model: torch.nn.Module, ids: list[int], first: int) -> Reading:
    """A reading by its definition, from the library's logits in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    columns = []
    for place in range(first, len(ids)):
        log_p = torch.log_softmax(logits[place - 1], dim=0).numpy()
        p = np.exp(log_p)
        mean = float((p * log_p).sum())
        spread = math.sqrt(max(float((p * log_p**2).sum()) - mean**2, 0.0))
        own = float(log_p[ids[place]])
        rank = int((log_p > own).sum())
        columns.append((own, mean, spread, rank, float(np.log(np.sort(p)[-40:].sum()))))
    array = np.array(columns)
    return Reading(
        log_probability=array[:, 0],
        expected=array[:, 1],
        spread=array[:, 2],
        rank=array[:, 3].astype(np.int64),
        log_mass=array[:, 4],
    )


def assert_close(found: Reading, wanted: Reading, tolerance: float = 2e-5) -> None:
    for name in ("log_probability", "expected", "spread", "log_mass"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=tolerance), name
    assert found.rank.tolist() == wanted.rank.tolist()


def check(model: AdaptedModel, folder: Path, *, tolerance: float = 2e-5) -> None:
    target = ModelTarget(model, max_length=64, batch_tokens=40)
    oracle: Any = truth_model(model, folder)
    asked = passages()
    for adapter in (True, False):
        found = target.read(asked, adapter=adapter)
        for passage, one in zip(asked, found, strict=True):
            ids, first = ids_of(passage, model.base.tokenizer)
            if adapter:
                wanted = truth(oracle, ids, first)
            else:
                with oracle.disable_adapter():
                    wanted = truth(oracle, ids, first)
            assert_close(one, wanted, tolerance)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_readings_are_the_librarys(make: Make, family: str) -> None:
    check(*make(family))


@pytest.mark.parametrize("quantization", ["int8", "int4", "nf4"])
def test_readings_of_a_quantised_base(make: Make, quantization: str) -> None:
    check(*make("llama", quantization=quantization))


def test_a_capped_and_a_tied_head(make: Make) -> None:
    check(*make("gemma2", final_logit_softcapping=2.0))
    check(*make("gpt2", tie_word_embeddings=True))


def test_chunks_and_batches_change_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make()
    asked = passages(20)
    whole = ModelTarget(model, max_length=64).read(asked, adapter=True)
    monkeypatch.setattr(reading, "_LOGITS", 5 * VOCABULARY)
    monkeypatch.setattr(reading, "_CACHED", 2 * VOCABULARY)
    pieces = ModelTarget(model, max_length=64, batch_tokens=1).read(asked, adapter=True)
    for one, other in zip(whole, pieces, strict=True):
        assert_close(one, other, 1e-5)


def test_no_more_logits_than_allowed_exist_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make()
    monkeypatch.setattr(reading, "_LOGITS", 7 * VOCABULARY)
    rows: list[int] = []
    head = reading.output_embedding(model.peft_model)
    handle = head.register_forward_hook(lambda _m, _i, out: rows.append(out.numel() // VOCABULARY))
    asked = passages(20)
    ModelTarget(model, max_length=64).read(asked, adapter=True)
    handle.remove()
    assert max(rows) <= max(7, len(asked))
    assert sum(rows) < sum(len(ids_of(p, model.base.tokenizer)[0]) for p in asked) + len(asked)


def test_a_certain_model_has_no_spread(make: Make) -> None:
    model, _ = make()
    head: Any = reading.output_embedding(model.peft_model)
    with torch.no_grad():
        head.weight.mul_(1e4)
    (certain,) = ModelTarget(model, max_length=64).read([Passage(text="w1 w2 w3")], adapter=True)
    assert certain.spread == pytest.approx(0, abs=1e-6)
    assert certain.expected == pytest.approx(0, abs=1e-6)
    assert certain.log_mass == pytest.approx(0, abs=1e-6)
    assert (certain.log_probability[certain.rank > 0] < -10).all()


def test_texts_are_cut_and_templates_used_as_in_training(make: Make) -> None:
    model, folder = make()
    oracle = truth_model(model, folder)
    tokenizer: Any = model.base.tokenizer
    passage = Passage(text="w5 w6 w7 w8", prompt="w1 w2")
    target = ModelTarget(model, max_length=6, template="w9 {prompt} w10 {response}")
    ids = tokenizer("w9 w1 w2 w10 w5 w6 w7 w8", add_special_tokens=False)["input_ids"]
    assert_close(target.read([passage], adapter=True)[0], truth(oracle, ids[:6], 4))
    long = Passage(text=" ".join(["w3"] * 30))
    (cut,) = target.read([long], adapter=True)
    assert cut.log_probability.shape == (5,)


def test_what_training_leaves_out_cannot_be_read(make: Make) -> None:
    model, _ = make()
    target = ModelTarget(model, max_length=4)
    too_long = Passage(text="w1", prompt="w2 w3 w4 w5 w6")
    empty = Passage(text="  ")
    fine = Passage(text="w1 w2")
    assert [target.scorable(p) for p in (too_long, empty, fine)] == [False, False, True]
    with pytest.raises(AuditError, match="2 of 3 passages") as caught:
        target.read([too_long, empty, fine], adapter=True)
    assert "w2" not in str(caught.value)


def test_a_diverged_adapter_is_an_error_and_not_a_number(make: Make) -> None:
    model, _ = make()
    model.load_vector(np.full(model.spec.size("B"), np.nan, dtype=np.float32), "B")
    target = ModelTarget(model, max_length=16)
    with pytest.raises(AuditError, match="1 of 1 readings are not finite"):
        target.read([Passage(text="w1 w2")], adapter=True)
    with pytest.raises(AuditError, match="rows of logits are not finite"):
        target.write(["w1"], adapter=True, max_tokens=2)
    assert losses(target, [Passage(text="w1 w2")], adapter=False).shape == (1,)


PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12 w13", "w4", "w14 w15 w16 w17 w18"]


def generated(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    """The library's greedy continuation of one unpadded prompt."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    new = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
        use_cache=True,
    )[0, ids.shape[1] :].tolist()
    ends = model.get_base_model().generation_config.eos_token_id
    stop = next((i for i, t in enumerate(new) if t in np.atleast_1d(ends)), len(new))
    full = str(tokenizer.decode(ids[0].tolist() + new[:stop]))
    return full[len(tokenizer.decode(ids[0].tolist())) :]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_writing_is_the_librarys(make: Make, family: str) -> None:
    model, _ = make(family)
    target = ModelTarget(model, max_length=64)
    # More tokens than the sliding windows of the families that have one.
    found = target.write(PROMPTS, adapter=True, max_tokens=24)
    tokenizer = model.base.tokenizer
    assert found == [generated(model.peft_model, tokenizer, prompt, 24) for prompt in PROMPTS]
    base = target.write(PROMPTS, adapter=False, max_tokens=24)
    with model.disabled():
        assert base == [generated(model.peft_model, tokenizer, prompt, 24) for prompt in PROMPTS]
    assert len(set(found)) == 4
    # Tiny Gemma, whose embedding is tied and scaled up, repeats the last word with any adapter.
    assert (found != base) == (family != "gemma")


def test_writing_stops_at_any_end_token(make: Make) -> None:
    model, _ = make()
    target = ModelTarget(model, max_length=64)
    free = target.write(PROMPTS, adapter=True, max_tokens=12)
    config: Any = model.base.model.generation_config
    stop = free[2].split()[4]
    config.eos_token_id = [1, model.base.tokenizer.convert_tokens_to_ids(stop)]
    cut = target.write(PROMPTS, adapter=True, max_tokens=12)
    assert [t.split() for t in cut] == [
        t.split()[: t.split().index(stop)] if stop in t.split() else t.split() for t in free
    ]
    assert len(cut[2].split()) <= 4
    tokenizer = model.base.tokenizer
    assert cut == [generated(model.peft_model, tokenizer, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_texts_that_have_ended_leave_the_batch_and_change_no_other(make: Make, family: str) -> None:
    """Caches of every family lose rows, sliding windows included; the library writes each alone."""
    model, _ = make(family)
    target = ModelTarget(model, max_length=64)
    tokenizer = model.base.tokenizer
    free = target.write(PROMPTS, adapter=True, max_tokens=24)
    config: Any = model.base.model.generation_config
    config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(free[0].split()[1])]
    cut = target.write(PROMPTS, adapter=True, max_tokens=24)
    assert len(cut[0].split()) <= 1
    assert cut == [generated(model.peft_model, tokenizer, prompt, 24) for prompt in PROMPTS]


def test_sampling_depends_on_the_seed_and_not_on_the_batches(make: Make) -> None:
    model, _ = make()
    one, other = (ModelTarget(model, max_length=64, batch_tokens=size) for size in (1, 4096))
    options: dict[str, Any] = {"adapter": True, "max_tokens": 10, "temperature": 0.8}
    written = one.write(PROMPTS, **options, seed=3)
    assert written == other.write(PROMPTS, **options, seed=3)
    assert written != one.write(PROMPTS, **options, seed=4)
    # The same prompt twice is two draws.
    assert written[1] != written[3]


@pytest.mark.statistical
def test_sampling_follows_the_forty_likeliest(make: Make) -> None:
    """Chi-square of 4,000 first tokens against exact probabilities; one seed, level 1e-3."""
    model, folder = make()
    target = ModelTarget(model, max_length=64)
    temperature = 0.7
    count = 4_000
    written = target.write(
        ["w1 w2"] * count, adapter=True, max_tokens=1, temperature=temperature, seed=11
    )
    tokenizer: Any = model.base.tokenizer
    ids = tokenizer("w1 w2", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = truth_model(model, folder)(input_ids=torch.tensor([ids])).logits[0, -1]
    top = torch.topk(logits, 40)
    wanted = torch.softmax(top.values / temperature, dim=0).numpy()
    # An end token is written as nothing.
    labels = ["" if int(t) == 1 else str(tokenizer.decode([int(t)])) for t in top.indices]
    found = np.array([sum(text.strip() == label for text in written) for label in labels])
    assert found.sum() == count
    assert stats.chisquare(found, wanted * count).pvalue > 1e-3


def test_a_long_prompt_loses_its_beginning(make: Make) -> None:
    model, _ = make("gpt2")
    target = ModelTarget(model, max_length=64)
    tail = [f"w{index % 60}" for index in range(200)]
    found = target.write([" ".join(tail)], adapter=True, max_tokens=8)
    kept = " ".join(tail[-56:])
    assert found == [generated(model.peft_model, model.base.tokenizer, kept, 8)]
    with pytest.raises(InvalidValue, match="window of 64"):
        target.write(["w1"], adapter=True, max_tokens=64)


def test_numbers_out_of_range_are_refused(make: Make) -> None:
    model, _ = make()
    target = ModelTarget(model, max_length=64)
    with pytest.raises(InvalidValue):
        target.write(["w1"], adapter=True, max_tokens=0)
    with pytest.raises(InvalidValue):
        target.write(["w1"], adapter=True, max_tokens=1, temperature=-1.0)
    with pytest.raises(InvalidValue):
        ModelTarget(model, max_length=0)
    with pytest.raises(InvalidValue):
        ModelTarget(model, max_length=8, template="{response}")
    assert target.read([], adapter=True) == []
    assert target.write([], adapter=True, max_tokens=3) == []


def test_the_demo_model_keeps_spaces_and_markers_as_text() -> None:
    base = load_base(str(ASSETS / "demo"))
    model = adapt(base, r=2, alpha=4, target_modules="all-linear")
    target = ModelTarget(model, max_length=128)
    prompts = ["The doctor said", "", "a </s> b"]
    written = target.write(prompts, adapter=False, max_tokens=12)
    tokenizer: Any = base.tokenizer
    peft_model: Any = model.peft_model
    for prompt, text in zip(prompts, written, strict=True):
        ids = [
            tokenizer.bos_token_id,
            *tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"],
        ]
        with model.disabled():
            new = peft_model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=12,
                use_cache=True,
            )[0].tolist()
        ended = new[: new.index(1)] if 1 in new[len(ids) :] else new
        assert str(tokenizer.decode(ended)) == str(tokenizer.decode(ids)) + text
    # A released adapter of zeros is the base.
    assert target.write(prompts, adapter=True, max_tokens=12) == written
