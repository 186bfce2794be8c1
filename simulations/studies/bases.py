"""Smaller siblings of the embedded demo model, pre-trained on the same kind of public text.

They share the demo model's tokenizer, so that losses per token, canaries and rare tokens are the
same for all, and every sibling of a study sees the same batches in the same order.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.files import disk_errors, write_text
from simulations.pretrain import DEMO_FOLDER, LOG_NAME, write_model_folder
from simulations.pretrain_steps import Recipe, advance, start
from simulations.studies.protocol import Shape

if TYPE_CHECKING:
    from simulations.pretrain_steps import Training

BASES = "bases"
_WARMUP_SHARE = 0.1


def recipe_of(shape: Shape) -> Recipe:
    """Return how a sibling is pre-trained: as the demo model, but for shape and length."""
    return Recipe(
        steps=shape.steps,
        sequences=shape.sequences,
        warmup=max(1, round(_WARMUP_SHARE * shape.steps)),
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        key_value_heads=max(1, shape.heads // 2),
        intermediate=shape.intermediate,
    )


def make_base(shape: Shape, out: Path, *, note: Callable[[str], None]) -> str:
    """Pre-train a sibling, unless the folder holds it already.

    Args:
        shape: its shape.
        out: the study's folder.
        note: is told what is being done.

    Returns:
        The model folder relative to ``out``, as ``model.base`` of a scenario.

    Raises:
        OutOfDisk: if there is no space.
        RunFolderError: if the folder cannot be written.
    """
    from tokenizers import Tokenizer

    recipe = recipe_of(shape)
    name = f"{BASES}/{shape.name}"
    folder = out / name
    if _finished(folder, recipe):
        return name
    note(f"pre-training {shape.name} for {recipe.steps} steps")
    began = time.monotonic()
    training = start(recipe, Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json")))
    _train(training)
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder):
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _without_bars():
            write_model_folder(training, partial)
        write_text(partial / "MODEL_CARD.md", _card(shape, partial))
        partial.rename(folder)
    note(f"pre-trained {shape.name} in {time.monotonic() - began:.0f} s")
    return name


def _train(training: Training) -> None:
    """Take all steps on one thread, so that sums are made in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while training.step < training.recipe.steps:
            advance(training)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars between our lines."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _finished(folder: Path, recipe: Recipe) -> bool:
    """Tell whether a folder holds the model of a recipe."""
    log = folder / LOG_NAME
    return log.is_file() and _read(log).get("recipe") == asdict(recipe)


def _card(shape: Shape, folder: Path) -> str:
    """Return a model card of its own: the demo model's would say how another one was made."""
    log = _read(folder / LOG_NAME)
    return (
        f"# {shape.name}\n\n"
        f"A Llama-architecture model with {log['parameters']} parameters, pre-trained for a study\n"
        f"of fedslm on {log['tokens']} tokens of generated public text, with the tokenizer of the\n"
        f"embedded demo model. Loss on held-out generated text: {log['holdout_loss']} nats per\n"
        f"token. The recipe is in `{LOG_NAME}`. It knows nothing of the world.\n"
    )


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object that this module wrote; an empty one if it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
