"""Labelled texts of a client: tokenised, and counted by class.

The labels are public; a scenario lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.classification import class_logits
from client.examples import IGNORED, Example
from client.losses import collate
from shared.errors import InvalidValue, NoUsableText
from shared.validate import positive_integer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from client.adapter import AdaptedModel
    from client.data import Record


def make_labelled_examples(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    labels: Sequence[str],
) -> list[Example]:
    """Tokenise the labelled texts of one client as ``[CLS] text [SEP]``.

    Markers inside a text stay text. A record whose label is not among the public ones is no
    example: whether a record counts depends on it alone.

    Args:
        records: of one client; may be empty.
        tokenizer: of the base model.
        max_length: most tokens of an example, the two markers included.
        labels: the public labels, in order.

    Returns:
        One example per usable record, in order.

    Raises:
        NoUsableText: if there are records and none is usable; names the client, no content.
        InvalidValue: if ``max_length`` has no room for a word between the markers.
    """
    positive_integer(max_length=max_length)
    first, last = _marker(tokenizer.cls_token_id), _marker(tokenizer.sep_token_id)
    room = max_length - len(first) - len(last)
    if not room >= 1:
        msg = f"data.max_length={max_length}, expected room for a token between the markers."
        raise InvalidValue(msg)
    classes = {label: number for number, label in enumerate(labels)}
    found = []
    for record in records:
        if not record.usable or record.label not in classes:
            continue
        encoded = tokenizer(
            str(record.text), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        body = [int(token) for token in encoded["input_ids"]][:room]
        ids = np.asarray(first + body + last, dtype=np.int64)
        marks = np.full(ids.shape, IGNORED, dtype=np.int64)
        marks[0] = classes[record.label]
        found.append(Example(ids=ids, labels=marks))
    if records and not found:
        name = records[0].client or "(unnamed)"
        msg = f"client={name!r} has {len(records)} records and none is a text with a known label."
        raise NoUsableText(msg, hint="Compare data.label with task.labels.")
    return found


def class_counts(
    model: AdaptedModel, examples: Sequence[Example], *, labels: int, batch_size: int
) -> list[int]:
    """Return hits, predictions and examples by class, one after the other: ``3 * labels`` numbers.

    What it returns depends on private text; only a simulated client is asked for it.
    """
    counts = np.zeros((3, labels), dtype=np.int64)
    pad_id = int(model.base.tokenizer.pad_token_id or 0)
    with torch.no_grad():
        for start in range(0, len(examples), batch_size):
            batch = collate(examples[start : start + batch_size], pad_id).to(model.device)
            guess = (
                class_logits(model.peft_model, batch.ids, batch.attention_mask)
                .argmax(dim=1)
                .cpu()
                .numpy()
            )
            truth = batch.labels[:, 0].cpu().numpy()
            for row, classes in enumerate((truth[guess == truth], guess, truth)):
                counts[row] += np.bincount(classes, minlength=labels)
    return [int(number) for number in counts.reshape(-1)]


def _marker(token_id: int | None) -> list[int]:
    """Return a special token as a list of none or one."""
    return [] if token_id is None else [int(token_id)]
