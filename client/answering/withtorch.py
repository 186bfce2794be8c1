"""Answers by torch and transformers: every family, every quantisation of the base, mixtures too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from client.answering.engine import Logits, with_begin
from client.chatturn import as_question
from client.exports.programmaking import end_tokens
from client.prompted import taken_of_window

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from client.adapter import AdaptedModel
    from client.model import BaseModel
    from shared.lora import Factors
    from shared.loraconfig import LoraTerms


class TorchEngine:
    """A causal language model of transformers.

    Args:
        model: the model, or PEFT's around one.
        tokenizer: of the base model.
        base: what :meth:`wear` puts an adapter on; None where ``model`` is final.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401  (transformers and PEFT)
        tokenizer: PreTrainedTokenizerBase,
        base: BaseModel | None = None,
    ) -> None:
        self.model = model
        self.adapted: AdaptedModel | None = None
        self._tokenizer = tokenizer
        self._base = base

    @classmethod
    def of(cls, base: BaseModel) -> TorchEngine:
        """Return the engine of a base model that was just loaded."""
        return cls(base.model, base.tokenizer, base)

    @property
    def window(self) -> int | None:
        """Return the most tokens of a text."""
        found = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        return None if found is None else int(found) - taken_of_window(self.model)

    @property
    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text, the tokenizer's and the model's own."""
        return end_tokens(self.model, self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids = [int(token) for token in encoded["input_ids"]]
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        return with_begin(
            ids, None if begin is None else int(begin), None if end is None else int(end)
        )

    def ask(self, question: str) -> list[int]:
        """Return the tokens of a question as a user's turn."""
        turn = as_question(question, self._tokenizer)
        encoded = self._tokenizer(turn, add_special_tokens=False, verbose=False)
        return [int(token) for token in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def wear(self, factors: Factors, terms: LoraTerms) -> None:
        """Put an adapter on the base; errors as :func:`client.adapterfit.fit`."""
        from client.adapterfit import fit
        from shared.errors import AdapterIncompatible

        if self._base is None:
            msg = "The model has its adapter already."
            raise AdapterIncompatible(msg)
        if self.adapted is None:
            self.adapted = fit(self._base, factors, terms)
            self.model = self.adapted.peft_model
        else:
            self.adapted.load(factors)

    def turn(self) -> TorchTurn:
        """Begin a text."""
        return TorchTurn(self.model)


class TorchTurn:
    """One text, with the cache of its keys and values."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self._model = model
        self._device = next(model.parameters()).device
        self._cache: Any = None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> Logits:
        """Take further tokens; return the numbers of the next one."""
        output = self._model(
            input_ids=torch.tensor([list(ids)], device=self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        found: Logits = output.logits[0, -1].float().cpu().numpy()
        return found
