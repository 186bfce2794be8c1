"""A client's records as examples, the same for rounds, measurements and steps of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.tokenization import make_examples
from shared.errors import NoUsableText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from client.data import ClientData, Record
    from client.examples import Example
    from shared.config import RunConfig


def local_examples(
    data: ClientData, config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Example], list[Example]]:
    """Return a client's training and held-out examples under the scenario's data section.

    Nothing is held out where nothing of it is left after cutting.

    Raises:
        NoUsableText: if there is no training text.
    """
    train = _tokenised(data.train, config, tokenizer)
    try:
        return train, _tokenised(data.holdout, config, tokenizer) if data.holdout else []
    except NoUsableText:
        return train, []


def _tokenised(
    records: Sequence[Record], config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Example]:
    """Turn records into examples."""
    data, task = config.data, config.task
    if task.classifies:
        from client.labelled import make_labelled_examples  # torch comes with it

        return make_labelled_examples(
            records, tokenizer, max_length=data.max_length, labels=task.labels
        )
    return make_examples(records, tokenizer, max_length=data.max_length, template=data.template)
