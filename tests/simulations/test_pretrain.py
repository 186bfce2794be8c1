from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import InvalidValue, NotResumable
from simulations import pretrain as subject
from simulations import pretrain_steps as steps
from simulations.corpora import CANARY_WORDS, private_records
from simulations.pretrain import DEMO_FOLDER, LOG_NAME
from simulations.pretrain_steps import Recipe

TINY = Recipe(
    steps=6,
    seed=3,
    sequences=2,
    context=32,
    warmup=2,
    vocabulary=320,
    tokenizer_documents=100,
    hidden=16,
    layers=2,
    heads=2,
    key_value_heads=1,
    intermediate=24,
)
DEMO_TOKENIZER = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
SPECIAL = re.compile("|".join(map(re.escape, (steps.BOS, steps.EOS, steps.PAD))))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sum in one order, as the command does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def committed_log() -> tuple[Recipe, dict[str, float], dict[str, float]]:
    """The recipe, the losses by step, and the whole log of the committed model."""
    log = json.loads((DEMO_FOLDER / LOG_NAME).read_text("utf-8"))
    return Recipe(**log["recipe"]), log["losses"], log


@pytest.mark.slow
@given(text=st.text(max_size=200).filter(lambda text: not SPECIAL.search(text)))
def test_any_text_survives_the_demo_tokenizer(text: str) -> None:
    ids = DEMO_TOKENIZER.encode(text).ids
    assert ids[0] == steps.BOS_ID
    assert DEMO_TOKENIZER.decode(ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_the_tokenizer_can_be_trained_again_from_its_recipe() -> None:
    recipe, _, _ = committed_log()
    again = json.loads(steps.train_tokenizer(recipe).to_str())
    committed = json.loads(DEMO_TOKENIZER.to_str())
    assert again["model"]["merges"] == committed["model"]["merges"]
    assert again["model"]["vocab"] == committed["model"]["vocab"]


def test_a_canary_word_is_one_token() -> None:
    for word in CANARY_WORDS:
        assert len(DEMO_TOKENIZER.encode(f" {word}", add_special_tokens=False).ids) == 1


def test_private_records_have_40_to_95_tokens() -> None:
    lengths = [
        len(encoding.ids)
        for client in range(200)
        for encoding in DEMO_TOKENIZER.encode_batch(private_records(client, seed=1, records=12))
    ]
    assert min(lengths) >= 40
    assert max(lengths) <= 95
    assert 60 <= sum(lengths) / len(lengths) <= 90


def test_the_demo_folder_is_small_and_holds_no_pickle() -> None:
    files = list(DEMO_FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert {file.name for file in files} == {
        "MODEL_CARD.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        LOG_NAME,
    }


@pytest.mark.slow
def test_transformers_loads_the_demo_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
        model = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER)
    finally:
        library.removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert len(tokenizer) == model.config.vocab_size
    prompt = tokenizer("The weather in", return_tensors="pt")
    logits = model(**prompt).logits
    assert logits.shape == (1, prompt.input_ids.shape[1], model.config.vocab_size)
    assert torch.isfinite(logits).all()


@pytest.mark.slow
def test_the_committed_weights_have_the_loss_that_the_card_states() -> None:
    """The oracle is the definition: mean of -log softmax at the next token."""
    recipe, _, log = committed_log()
    model = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER)
    batches = [steps.public_batch(recipe, DEMO_TOKENIZER, "holdout", index) for index in range(8)]
    losses = []
    with torch.no_grad():
        for batch in batches:
            logs = torch.log_softmax(model(input_ids=batch).logits[:, :-1].double(), dim=-1)
            losses.append(-logs.gather(-1, batch[:, 1:, None]).mean().item())
    mean = sum(losses) / len(losses)
    assert mean == pytest.approx(log["holdout_loss"], abs=1e-3)
    card = (DEMO_FOLDER / "MODEL_CARD.md").read_text("utf-8")
    assert f"| {log['holdout_loss']} nats per token |" in card
    assert f"--steps {recipe.steps} --seed {recipe.seed}" in card


@pytest.mark.slow
def test_the_first_steps_can_be_repeated() -> None:
    """Losses of the first five steps, within 1e-3 nats: other CPUs sum in another order."""
    recipe, losses, _ = committed_log()
    training = steps.start(recipe, steps.train_tokenizer(recipe))
    for step in range(1, 6):
        assert steps.advance(training) == pytest.approx(losses[str(step)], abs=1e-3)


def test_the_log_covers_the_training() -> None:
    recipe, losses, log = committed_log()
    assert {str(step) for step in range(1, 21)} <= losses.keys()
    assert {str(step) for step in range(50, recipe.steps + 1, 50)} <= losses.keys()
    assert log["tokens"] == recipe.steps * recipe.sequences * recipe.context
    # An untrained model guesses uniformly: ln(vocabulary).
    assert losses["1"] == pytest.approx(math.log(recipe.vocabulary), abs=0.1)
    assert losses[str(recipe.steps)] < losses["1"] / 3


def test_stopping_and_resuming_changes_nothing(tmp_path: Path) -> None:
    whole = subject.pretrain(tmp_path / "whole", TINY)
    half = subject.pretrain(tmp_path / "parts", TINY, stop_after=3)
    assert half.step == 3
    assert not (tmp_path / "parts" / "config.json").exists()
    rest = subject.pretrain(tmp_path / "parts", TINY, resume=True)
    assert rest.losses == whole.losses
    for name in ("model.safetensors", "tokenizer.json", LOG_NAME, "MODEL_CARD.md", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "parts" / "checkpoint").exists()


def test_a_kill_while_writing_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    subject.pretrain(tmp_path, TINY, stop_after=2)
    folder = tmp_path / "checkpoint"
    (folder / "step-4.safetensors").write_bytes(b"half")
    (folder / "step-5.partial").write_bytes(b"half")
    resumed = subject.load_checkpoint(TINY, folder)
    assert resumed.step == 2
    assert subject.pretrain(tmp_path, TINY, resume=True).step == TINY.steps


def test_another_seed_gives_other_weights_and_text(tmp_path: Path) -> None:
    one = subject.pretrain(tmp_path / "one", replace(TINY, steps=1))
    two = subject.pretrain(tmp_path / "two", replace(TINY, steps=1, seed=4))
    assert one.losses != two.losses


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    training = steps.start(TINY, steps.train_tokenizer(TINY))
    steps.advance(training)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("step", "share"), [(1, 0.5), (2, 1.0), (4, 0.55), (6, 0.1), (60, 0.1)])
def test_the_learning_rate_warms_up_and_falls_to_a_tenth(step: int, share: float) -> None:
    assert steps.learning_rate(TINY, step) == pytest.approx(TINY.learning_rate * share)


def test_resuming_needs_a_checkpoint_of_the_same_recipe(tmp_path: Path) -> None:
    with pytest.raises(NotResumable, match="no checkpoint"):
        subject.pretrain(tmp_path, TINY, resume=True)
    subject.pretrain(tmp_path, TINY, stop_after=1)
    with pytest.raises(NotResumable, match="another recipe"):
        subject.pretrain(tmp_path, replace(TINY, seed=9), resume=True)


def test_a_training_of_no_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="steps=0"):
        subject.pretrain(tmp_path, replace(TINY, steps=0))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        subject.main(["--out", str(tmp_path), "--resume"])
    assert stop.value.code == NotResumable.exit_code
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_recipe_survives_json() -> None:
    assert Recipe(**json.loads(json.dumps(asdict(TINY)))) == TINY
