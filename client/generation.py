"""Text from a causal language model, one prompt at a time, piece by piece."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from client.latency import Latency
from shared import validate
from shared.errors import AdapterCorrupt, InvalidValue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 8
"""Tokens of the prompt that decoding sees, so that a first space is not taken for a margin."""

_SEEDS = 1 << 63

_UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character of which bytes are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without the prompt and without the end token.
        prompt_tokens: how many tokens the prompt had.
        tokens: how many were written.
        ended: "end" (the model ended it), "length" (``max_tokens``) or "window" (the model's
            window is full).
        latency: how long it took; two answers that differ in nothing else are equal.
    """

    text: str
    prompt_tokens: int
    tokens: int
    ended: str
    latency: Latency | None = field(default=None, compare=False)


@dataclass(slots=True, kw_only=True)
class Generator:
    """Writes on from a prompt.

    Args:
        model: a causal language model of transformers, or PEFT's model around one.
        tokenizer: of the base model.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase

    def answer(
        self,
        prompt: str,
        *,
        max_tokens: int,
        temperature: float,
        top_k: int,
        seed: int | None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Write an answer; arguments and errors as ``client.inference.LocalModel.generate``."""
        marks = [perf_counter()]
        draws = _draws(temperature, top_k, seed)
        ids, room = self._encode(prompt, max_tokens)
        limit = min(max_tokens, room)
        tokens: list[int] = []
        pieces: list[str] = []
        for piece in self._write(ids, tokens, limit, draws, marks):
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)
        full = "window" if room < max_tokens else "length"
        ended = full if len(tokens) == limit else "end"
        text = "".join(pieces)
        latency = Latency.of(marks, perf_counter())
        return Answer(
            text=text, prompt_tokens=len(ids), tokens=len(tokens), ended=ended, latency=latency
        )

    def pieces(
        self, prompt: str, *, max_tokens: int, temperature: float, top_k: int, seed: int | None
    ) -> Iterator[str]:
        """Yield the pieces of an answer as they are written."""
        ids, room = self._encode(prompt, max_tokens)
        draws = _draws(temperature, top_k, seed)
        return self._write(ids, [], min(max_tokens, room), draws, [])

    def _encode(self, prompt: str, max_tokens: int) -> tuple[list[int], int]:
        """Return the tokens of a prompt and how many fit behind them."""
        validate.positive_integer(max_tokens=max_tokens)
        encoded = self.tokenizer(
            prompt, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids = [int(token) for token in encoded["input_ids"]]
        begin = self.tokenizer.bos_token_id
        if begin is None and not ids:
            begin = self.tokenizer.eos_token_id
        if begin is not None and ids[:1] != [int(begin)]:
            ids = [int(begin), *ids]
        if not ids:
            msg = "An empty prompt, and a tokenizer without a token to begin from."
            raise InvalidValue(msg, hint="Ask something.")
        window = getattr(self._config(), "max_position_embeddings", None)
        room = 1 << 31 if window is None else int(window) - len(ids)
        if not room >= 1:
            msg = f"The prompt has {len(ids)} tokens, expected fewer than {window}."
            raise InvalidValue(msg, hint="That is the model's window; shorten the prompt.")
        return ids, room

    @torch.inference_mode()
    def _write(
        self, ids: list[int], tokens: list[int], limit: int, draws: _Draws, marks: list[float]
    ) -> Iterator[str]:
        """Yield pieces of text; add what was written to ``tokens``, and when to ``marks``."""
        ends, said = self._end_tokens(), ""
        device = next(self.model.parameters()).device
        step, cache = torch.tensor([ids], device=device), None
        while len(tokens) < limit:
            output = self.model(
                input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = output.past_key_values
            token = draws.choose(output.logits[0, -1].float())
            marks.append(perf_counter())
            if token in ends:
                break
            tokens.append(token)
            step = torch.tensor([[token]], device=device)
            text = self._text(ids, tokens)
            if not text.endswith(_UNFINISHED) and text.startswith(said) and text != said:
                yield text[len(said) :]
                said = text
        text = self._text(ids, tokens)
        if text.startswith(said) and text != said:
            yield text[len(said) :]

    def _text(self, ids: list[int], tokens: list[int]) -> str:
        """Return what was written; a space between prompt and text is kept."""
        head, full = self._decode(ids[-_CONTEXT:]), self._decode(ids[-_CONTEXT:] + tokens)
        return full[len(head) :] if full.startswith(head) else self._decode(tokens)

    def _decode(self, ids: list[int]) -> str:
        """Return tokens as text."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _config(self) -> object:
        """Return the base model's configuration."""
        return getattr(self.model, "config", None)

    def _end_tokens(self) -> set[int]:
        """Return the tokens that end a text, the tokenizer's and the model's own."""
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = set(found) if isinstance(found, list | tuple) else {found}
        return {int(token) for token in ends | {self.tokenizer.eos_token_id} if token is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """How the next token is chosen."""

    temperature: float
    top_k: int
    generator: torch.Generator

    def choose(self, logits: torch.Tensor) -> int:
        """Return the likeliest token, or one among the ``top_k`` likeliest."""
        best = logits.amax()
        if not bool(torch.isfinite(best)):
            msg = "The model gives numbers that are not finite."
            raise AdapterCorrupt(msg, hint="The adapter has probably diverged; roll it back.")
        if self.temperature == 0:
            return int(logits.argmax())
        top = logits.topk(min(self.top_k, logits.shape[0]))
        weights = torch.softmax((top.values - best).double().cpu() / self.temperature, dim=0)
        place = torch.multinomial(weights, 1, generator=self.generator)
        return int(top.indices[int(place)])


def _draws(temperature: float, top_k: int, seed: int | None) -> _Draws:
    """Check the numbers, and seed the draws."""
    validate.non_negative(temperature=temperature)
    validate.positive_integer(top_k=top_k)
    if seed is not None and not (type(seed) is int and 0 <= seed < _SEEDS):
        msg = f"seed={seed!r}, expected an integer from 0 to {_SEEDS - 1}."
        raise InvalidValue(msg)
    generator = torch.Generator()
    generator.manual_seed(secrets.randbits(63) if seed is None else seed)
    return _Draws(temperature=temperature, top_k=top_k, generator=generator)
