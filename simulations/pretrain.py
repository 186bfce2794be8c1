"""Pre-train the embedded demo model from public text that this project generates.

``python -m simulations.pretrain --out DIR`` trains a byte-level BPE tokenizer, then a small
Llama from scratch, and writes a transformers folder with its card and its training log. Every
step's batch is a function of (seed, step) alone, so training resumes without replaying anything
and the first steps can be repeated and compared with the log by whoever doubts the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import FedSLMError, NotResumable
from shared.files import write_text
from shared.validate import positive_integer
from simulations.pretrain_steps import (
    BOS,
    DEFAULT_SEED,
    DEFAULT_STEPS,
    EOS,
    LOGGED_EVERY,
    LOGGED_FIRST_STEPS,
    PAD,
    Recipe,
    Training,
    advance,
    holdout_loss,
    start,
    train_tokenizer,
)

if TYPE_CHECKING:
    import torch

DEMO_FOLDER = Path(__file__).parent / "assets" / "demo"
LOG_NAME = "training_log.json"


def save_checkpoint(training: Training, folder: Path) -> None:
    """Write a checkpoint that a killed process cannot leave half-written.

    Tensors (weights and AdamW moments) go into a safetensors file named after the step; the
    JSON beside it is replaced last and names that file, so it always points at a whole one.

    Args:
        training: the state to keep.
        folder: made when missing.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in training.model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach().contiguous()
        for key, value in training.optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value
    target = folder / f"step-{training.step}.safetensors"
    partial = target.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(target)
    header = {
        "step": training.step,
        "recipe": asdict(training.recipe),
        "losses": training.losses,
        "tensors": target.name,
    }
    training.tokenizer.save(str(folder / "tokenizer.json"))
    write_text(folder / "checkpoint.json", json.dumps(header))
    for old in folder.glob("step-*.safetensors"):
        if old != target:
            old.unlink()


def load_checkpoint(recipe: Recipe, folder: Path) -> Training:
    """Restore a training that :func:`save_checkpoint` wrote.

    Args:
        recipe: must be the recipe of the checkpoint.
        folder: where the checkpoint is.

    Returns:
        The state, ready for its next step.

    Raises:
        NotResumable: if there is no checkpoint, or it has another recipe.
    """
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    header_path = folder / "checkpoint.json"
    if not header_path.is_file():
        msg = "The output folder holds no checkpoint."
        raise NotResumable(msg, hint="Start again without --resume.")
    header = json.loads(header_path.read_text("utf-8"))
    if header["recipe"] != asdict(recipe):
        msg = "The checkpoint was made with another recipe."
        hint = "Give the same --steps and --seed, or start again without --resume."
        raise NotResumable(msg, hint=hint)
    training = start(recipe, Tokenizer.from_file(str(folder / "tokenizer.json")))
    tensors = load_file(folder / header["tensors"])
    with torch.no_grad():
        for name, parameter in training.model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
            training.optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }
    training.step = header["step"]
    training.losses = {int(step): loss for step, loss in header["losses"].items()}
    return training


def pretrain(
    out: Path,
    recipe: Recipe,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    checkpoint_every: int = 500,
    report: Callable[[str], None] = lambda _: None,
) -> Training:
    """Train, and write the model folder when the last step is done.

    Args:
        out: the model folder; the checkpoint lives in ``out/checkpoint`` until training is done.
        recipe: what to train.
        resume: go on from the checkpoint instead of starting.
        stop_after: stop, with a checkpoint and no model folder, once this step is done.
        checkpoint_every: steps between checkpoints.
        report: receives one line of progress now and then.

    Returns:
        The final state.

    Raises:
        NotResumable: if ``resume`` and there is no checkpoint of this recipe.
        InvalidValue: if ``recipe.steps`` is not a positive integer.
    """
    positive_integer(steps=recipe.steps, checkpoint_every=checkpoint_every)
    folder = out / "checkpoint"
    training = load_checkpoint(recipe, folder) if resume else start(recipe, train_tokenizer(recipe))
    began, first = time.monotonic(), training.step
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    while training.step < last:
        loss = advance(training)
        if training.step % LOGGED_EVERY == 0:
            speed = (training.step - first) / (time.monotonic() - began)
            left = (last - training.step) / speed
            report(f"step {training.step}/{recipe.steps}  loss {loss:.3f}  {left:.0f} s left")
        if training.step % checkpoint_every == 0 or training.step == last:
            save_checkpoint(training, folder)
    if training.step == recipe.steps:
        write_model_folder(training, out)
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()
    return training


def write_model_folder(training: Training, out: Path) -> None:
    """Write weights, configuration, tokenizer, training log and model card.

    Args:
        training: a finished training.
        out: made when missing; files of the same names are replaced.
    """
    from transformers import PreTrainedTokenizerFast

    out.mkdir(parents=True, exist_ok=True)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=training.tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=training.recipe.context,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(out)
    training.model.save_pretrained(out)
    log = {
        "recipe": asdict(training.recipe),
        "parameters": training.model.num_parameters(),
        "tokens": training.step * training.recipe.sequences * training.recipe.context,
        "holdout_loss": round(holdout_loss(training), 4),
        "losses": {str(step): loss for step, loss in sorted(training.losses.items())},
    }
    write_text(out / LOG_NAME, json.dumps(log, indent=1) + "\n")
    write_text(out / "MODEL_CARD.md", _card(training.recipe, log))


def _card(recipe: Recipe, log: dict[str, object]) -> str:
    """Return the model card, with no number that the log does not hold."""
    losses = log["losses"]
    first, last = (losses["1"], losses[str(recipe.steps)]) if isinstance(losses, dict) else (0, 0)
    return f"""---
license: apache-2.0
language: en
---
# fedslm demo model

A Llama-architecture language model with {log["parameters"]} parameters and a byte-level BPE
tokenizer of {recipe.vocabulary} entries, trained from scratch by this project. It is the base
model of the built-in scenarios: small enough for a laptop's CPU and for a repository.

## Data

Only text that `simulations/public_text.py` generates: invented stories, encyclopaedia entries,
recipes, letters, dialogues, instructions, sums, weather reports, general health advice, notices,
quizzes, loose sentences, timetables, catalogues, glossaries of invented words, and strings of
signs. No text was collected and no person is real. The private corpus of `simulations/corpora.py`
(clinical notes) was used neither for the weights nor for the tokenizer.

## Training

| | |
|---|---|
| steps | {recipe.steps} |
| tokens | {log["tokens"]} ({recipe.sequences} sequences of {recipe.context} a step) |
| optimizer | AdamW, peak learning rate {recipe.learning_rate:g}, {recipe.warmup} warm-up steps, \
cosine to a tenth, weight decay {recipe.weight_decay:g}, gradient norm at most 1 |
| seed | {recipe.seed} |
| loss of step 1 | {first} nats per token |
| loss of step {recipe.steps} | {last} nats per token |
| loss on held-out generated text | {log["holdout_loss"]} nats per token |

Made by

    python -m simulations.pretrain --out simulations/assets/demo --steps {recipe.steps} \
--seed {recipe.seed}

`{LOG_NAME}` holds the recipe and the losses of the first {LOGGED_FIRST_STEPS} steps and of every
{LOGGED_EVERY}th; a test repeats the first steps and compares.

## Use

For demonstrations, tests and measurements of federated fine-tuning under differential privacy.
It knows little of the world and is of no use as a source of facts or advice, medical or other.
Its training text is narrow, so low loss on that text says nothing about other English.

Licence: Apache-2.0.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Pre-train the demo model; progress goes to stderr.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` when None.
    """
    import torch

    parser = argparse.ArgumentParser(prog="python -m simulations.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of text and weights")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    given = parser.parse_args(arguments)
    # One thread: sums are then made in one order, and losses repeat on the same machine.
    torch.set_num_threads(1)
    recipe = Recipe(steps=given.steps, seed=given.seed)
    try:
        pretrain(given.out, recipe, resume=given.resume, report=_to_stderr)
    except FedSLMError as error:
        _to_stderr(str(error))
        raise SystemExit(error.exit_code) from error


def _to_stderr(line: str) -> None:
    """Write one line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
