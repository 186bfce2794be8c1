"""The model under audit: a base with one adapter, read and made to write as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from client.data import Record
from client.examples import Example
from client.losses import collate
from client.tokenization import PLAIN, check_template, make_examples
from server.audit.target import Passage, Reading, Target
from shared import validate
from shared.errors import AuditError, NoUsableText
from simulations.auditing.reading import read_batch
from simulations.auditing.writing import Writer

if TYPE_CHECKING:
    import torch

    from client.model import BaseModel

BATCH_TOKENS = 2_048
"""Tokens, padding included, that go through the model at once."""


class Subject(Protocol):
    """A base model with one adapter that can be switched off."""

    @property
    def base(self) -> BaseModel:
        """The base model with its tokenizer."""

    @property
    def peft_model(self) -> Any:  # noqa: ANN401  (PEFT has no types)
        """PEFT's model around it."""

    @property
    def device(self) -> torch.device:
        """Where the adapter lives."""

    def disabled(self) -> AbstractContextManager[None]:
        """Let the model be the base alone inside the ``with`` block."""


class ModelTarget(Target):
    """A real model with its adapter.

    Args:
        model: the adapted model, with the released adapter loaded.
        max_length: most tokens of a passage, as in training; the rest is cut off.
        template: how a prompt and what follows it are joined, as in training.
        batch_tokens: tokens that go through the model at once; memory, not results.

    Raises:
        InvalidValue: for a length that is not positive, or a malformed template.
    """

    def __init__(
        self,
        model: Subject,
        *,
        max_length: int,
        template: str = PLAIN,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        validate.positive_integer(max_length=max_length, batch_tokens=batch_tokens)
        check_template(template)
        self._model = model
        self._max_length = max_length
        self._template = template
        self._batch_tokens = batch_tokens
        self._examples: dict[Passage, Example | None] = {}

    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        """Read passages as training would: same tokens, same cut, prompt not scored.

        Raises:
            AuditError: if a passage has no token to score (see :meth:`scorable`), or the model
                answers with numbers that are not finite.
        """
        examples = [self._example(passage) for passage in passages]
        usable = [example for example in examples if example is not None]
        if len(usable) != len(examples):
            lacking = len(examples) - len(usable)
            msg = (
                f"{lacking} of {len(examples)} passages have no token to score within "
                f"max_length={self._max_length}."
            )
            raise AuditError(msg, hint="Leave out what training would leave out.")
        readings: list[Reading | None] = [None] * len(usable)
        pad_id = int(self._model.base.tokenizer.pad_token_id or 0)
        with self._switched(adapter=adapter):
            for rows in self._batches([example.ids.size for example in usable]):
                batch = collate([usable[row] for row in rows], pad_id).to(self._model.device)
                read = read_batch(self._model.peft_model, batch)
                for row, reading in zip(rows, read, strict=True):
                    readings[row] = reading
        done = [reading for reading in readings if reading is not None]
        _require_finite(done)
        return done

    def write(
        self,
        prompts: Sequence[str],
        *,
        adapter: bool,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Go on from prompts, which are read as they stand, after the start token if there is one.

        With the ``plain`` template a marker such as ``</s>`` inside a prompt is text; with any
        other it counts, as it does when a chat is served. A prompt that leaves no room in the
        model's window for ``max_tokens`` loses its beginning. What is sampled depends on the seed
        and on the position of a prompt in the list, not on how prompts are batched.

        Raises:
            InvalidValue: if a number is out of range.
            AuditError: if a prompt is empty and the tokenizer has nothing to start from, or the
                model answers with numbers that are not finite.
        """
        writer = Writer(
            model=self._model.peft_model,
            tokenizer=self._model.base.tokenizer,
            device=self._model.device,
            literal=self._template == PLAIN,
            batch_tokens=self._batch_tokens,
        )
        with self._switched(adapter=adapter):
            return writer.write(prompts, max_tokens=max_tokens, temperature=temperature, seed=seed)

    def scorable(self, passage: Passage) -> bool:
        """Tell whether training would have made an example of a passage."""
        return self._example(passage) is not None

    def _example(self, passage: Passage) -> Example | None:
        """Tokenise a passage, once; None if training would leave it out."""
        if passage not in self._examples:
            self._examples[passage] = self._tokenised(passage)
        return self._examples[passage]

    def _tokenised(self, passage: Passage) -> Example | None:
        """Tokenise a passage; None if training would leave it out."""
        record = (
            Record(prompt=passage.prompt, response=passage.text)
            if passage.prompt
            else Record(text=passage.text)
        )
        if not record.usable:
            return None
        try:
            return make_examples(
                [record],
                self._model.base.tokenizer,
                max_length=self._max_length,
                template=self._template,
            )[0]
        except NoUsableText:
            return None

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield positions of passages of similar length, each batch within the token budget."""
        batch: list[int] = []
        for row in map(int, np.argsort(lengths, kind="stable")):
            # Sorted upwards, so the newest is the longest, and all are padded to it.
            if batch and (len(batch) + 1) * lengths[row] > self._batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _switched(self, *, adapter: bool) -> AbstractContextManager[None]:
        """Switch the adapter off unless it is wanted."""
        return nullcontext() if adapter else self._model.disabled()


def _require_finite(readings: Sequence[Reading]) -> None:
    """Refuse readings with numbers that are not finite."""
    bad = sum(
        not all(
            np.isfinite(column).all()
            for column in (r.log_probability, r.expected, r.spread, r.log_mass)
        )
        for r in readings
    )
    if bad:
        msg = f"{bad} of {len(readings)} readings are not finite, expected finite nats."
        raise AuditError(msg, hint="The adapter has probably diverged; lower the learning rate.")
