"""Text from a causal language model: batched, cached, reproducible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from client.mixture import keep_rows
from client.prompted import taken_of_window
from server.audit.target import TOP_K
from shared import validate
from shared.errors import AuditError, InvalidValue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORTH_KEEPING = 0.8
"""Share of rows still written on, from which on the ended ones are carried along no more."""
_CONTEXT = 8
"""Tokens of the prompt that decoding sees, so that a first space is not taken for a margin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Writes on from prompts.

    Args:
        model: a PEFT model around a causal language model, its adapter as it is switched.
        tokenizer: of the base model.
        device: where the model lives.
        literal: whether markers such as ``</s>`` inside a prompt are text.
        batch_tokens: tokens, of prompts and of what is written, that are cached at once.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    literal: bool
    batch_tokens: int

    def write(
        self, prompts: Sequence[str], *, max_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """Return what the model writes after each prompt, without the end token.

        Raises:
            InvalidValue: if a number is out of range.
            AuditError: if a prompt has no token to start from, or a logit is not finite.
        """
        validate.positive_integer(max_tokens=max_tokens)
        validate.non_negative(temperature=temperature)
        ids = [self._encode(prompt, max_tokens) for prompt in prompts]
        # One row of draws per prompt: what is written then does not depend on the batches.
        draws = torch.rand(
            (len(ids), max_tokens),
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
        written = [""] * len(ids)
        for rows in self._batches(ids, max_tokens):
            tokens = self._continue(
                [ids[row] for row in rows], draws[rows], temperature=temperature
            )
            for row, new in zip(rows, tokens, strict=True):
                written[row] = self._decode(ids[row], new)
        return written

    def _encode(self, prompt: str, max_tokens: int) -> list[int]:
        """Return the tokens of a prompt, its beginning cut off if the window is too small."""
        tokenizer = self.tokenizer
        encoded = tokenizer(
            prompt, add_special_tokens=False, split_special_tokens=self.literal, verbose=False
        )
        ids = [int(token) for token in encoded["input_ids"]]
        start = next(
            (int(t) for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None),
            None,
        )
        if tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
            ids = [int(tokenizer.bos_token_id), *ids]
        if not ids and start is not None:
            ids = [start]
        if not ids:
            msg = "An empty prompt, and a tokenizer without a start or end token to begin from."
            raise AuditError(msg)
        window = getattr(self.model.get_base_model().config, "max_position_embeddings", None)
        ahead = taken_of_window(self.model)
        room = len(ids) if window is None else int(window) - ahead - max_tokens
        if not room >= 1:
            msg = f"max_tokens={max_tokens}, expected below the model's window of {window} tokens."
            raise InvalidValue(msg)
        return ids[-room:]

    def _decode(self, before: list[int], new: list[int]) -> str:
        """Return new tokens as text; a space between prompt and text is kept."""
        context = before[-_CONTEXT:]
        head = str(self.tokenizer.decode(context))
        full = str(self.tokenizer.decode(context + new))
        return full[len(head) :] if full.startswith(head) else str(self.tokenizer.decode(new))

    def _batches(self, ids: Sequence[list[int]], max_tokens: int) -> Iterator[list[int]]:
        """Yield positions of prompts of similar length, each batch within the token budget."""
        batch: list[int] = []
        for row in sorted(range(len(ids)), key=lambda row: len(ids[row])):
            if batch and (len(batch) + 1) * (len(ids[row]) + max_tokens) > 4 * self.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    @torch.no_grad()
    def _continue(
        self, ids: Sequence[list[int]], draws: torch.Tensor, *, temperature: float
    ) -> list[list[int]]:
        """Return the tokens written after each prompt, up to the first end token.

        Prompts whose text has ended leave the batch, and the cache, as soon as they are many.
        """
        ends = torch.tensor(sorted(self._end_tokens()), dtype=torch.int64, device=self.device)
        written: list[list[int]] = [[] for _ in ids]
        rows = _Rows.of(ids, pad=int(self.tokenizer.pad_token_id or 0), device=self.device)
        cache = None
        for draw in draws.to(self.device).unbind(dim=1):
            output = self.model(
                input_ids=rows.step,
                attention_mask=rows.mask,
                position_ids=rows.positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            token = _choose(output.logits[:, -1].float(), draw[rows.prompts], temperature)
            rows.end(torch.isin(token, ends))
            for prompt, new, going in zip(
                rows.prompts.tolist(), token.tolist(), rows.going.tolist(), strict=True
            ):
                if going:
                    written[prompt].append(new)
            if not bool(rows.going.any()):
                break
            rows.go_on(token)
            if isinstance(cache, DynamicCache) and rows.mostly_ended():
                keep_rows(cache, rows.drop_ended())
        return written

    def _end_tokens(self) -> set[int]:
        """Return the tokens that end a text, the tokenizer's and the model's own."""
        config: Any = getattr(self.model.get_base_model(), "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        ends = set(found) if isinstance(found, list | tuple) else {found}
        return {int(token) for token in ends | {self.tokenizer.eos_token_id} if token is not None}


@dataclass(slots=True, kw_only=True)
class _Rows:
    """The prompts of a batch that are still written on from.

    They are padded on the left, so that all go on from the same column; padding is masked and
    positions count from the first real token.

    Attributes:
        prompts: which prompt each row belongs to, shape ``(B,)``.
        step: the tokens that the model has not seen yet, shape ``(B, t)``.
        mask: 1 for every token of a text so far, 0 for padding.
        positions: of the tokens in ``step``.
        going: whether a row's text has not ended.
        pad: the token of padding, and of what follows an ended text.
    """

    prompts: torch.Tensor
    step: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    going: torch.Tensor
    pad: int

    @classmethod
    def of(cls, ids: Sequence[list[int]], *, pad: int, device: torch.device) -> _Rows:
        """Return the rows of prompts of which nothing has been read."""
        width = max(map(len, ids))
        lengths = torch.tensor([len(row) for row in ids], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        return cls(
            prompts=torch.arange(len(ids), device=device),
            step=torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=device),
            mask=mask,
            positions=(mask.cumsum(dim=1) - 1).clamp(min=0),
            going=torch.ones(len(ids), dtype=torch.bool, device=device),
            pad=pad,
        )

    def end(self, ended: torch.Tensor) -> None:
        """Note which rows came to their end token, shape ``(B,)``."""
        self.going &= ~ended

    def go_on(self, token: torch.Tensor) -> None:
        """Append a token to every row, padding to those that have ended."""
        self.step = torch.where(self.going, token, self.pad)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], dim=1)
        self.positions = self.positions[:, -1:] + 1

    def mostly_ended(self) -> bool:
        """Tell whether so many rows have ended that it pays to copy the rest."""
        return int(self.going.sum()) <= _WORTH_KEEPING * len(self.going)

    def drop_ended(self) -> torch.Tensor:
        """Leave out the rows that have ended; returns the places of those that stay."""
        kept = self.going.nonzero()[:, 0]
        for name in ("prompts", "step", "mask", "positions", "going"):
            setattr(self, name, getattr(self, name)[kept])
        return kept


def _choose(logits: torch.Tensor, draw: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return one token per row: the likeliest, or one among the :data:`TOP_K` likeliest.

    Args:
        logits: float32, shape ``(B, V)``.
        draw: uniform in [0, 1), float64, shape ``(B,)``; inverts the cumulative distribution.
        temperature: 0 for the likeliest token.

    Raises:
        AuditError: if a row has no finite maximum.
    """
    best = logits.amax(dim=1)
    if not bool(torch.isfinite(best).all()):
        msg = f"{int((~torch.isfinite(best)).sum())} rows of logits are not finite."
        raise AuditError(msg, hint="The adapter has probably diverged; lower the learning rate.")
    if temperature == 0:
        return logits.argmax(dim=1)
    top = logits.topk(min(TOP_K, logits.shape[1]), dim=1)
    scaled = (top.values - best[:, None]).double() / max(temperature, math.ulp(0.0))
    cumulative = torch.softmax(scaled, dim=1).cumsum(dim=1)
    # Rounding may leave the last sum a little below 1, and a draw above it.
    place = (cumulative <= draw[:, None]).sum(dim=1, keepdim=True)
    chosen: torch.Tensor = top.indices.gather(1, place.clamp(max=cumulative.shape[1] - 1))[:, 0]
    return chosen
