"""A real model in conversation: prompts rendered, answers written by a target."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from client.tokenization import CHAT, PLAIN
from server.audit.promptleak.assistant import Assistant, Conversation
from server.audit.target import Target
from shared import validate
from shared.errors import InvalidValue
from simulations.auditing.target import ModelTarget, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARGIN = 24
"""Tokens that an answer may have beyond its room, for "Sure, here it is"."""
LEAST = 16
"""An answer of fewer tokens shows nothing; a conversation that leaves no more does not fit."""
STEP = 32
"""Answers are written in groups of nearly equal length, rounded up to this many tokens."""

_NAMES = ("User", "Assistant")
_NEXT_TURN = "\nUser:"


class TargetAssistant(Assistant):
    """A target that answers under a system prompt.

    The tokenizer's chat template is used if it has one; a template that knows no system role gets
    the system prompt at the head of the first turn. Otherwise the conversation is written out as
    ``System: …``, ``User: …``, ``Assistant:``, and an answer ends where it begins to speak for the
    user. Answers are greedy.

    Args:
        target: the model; where there is a chat template, one for which markers in a prompt count
            (:func:`assistant_for` sees to it).
        tokenizer: of the base model.
        window: most tokens of conversation and answer together; None for no limit.
        margin: tokens of an answer beyond its room.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int | None = None,
        margin: int = MARGIN,
    ) -> None:
        validate.positive_integer(margin=margin)
        if window is not None:
            validate.positive_integer(window=window)
        self._target = target
        self._tokenizer = tokenizer
        self._window = window
        self._margin = margin
        self._chat = bool(getattr(tokenizer, "chat_template", None))

    def respond_many(
        self, conversations: Sequence[Conversation], *, adapter: bool, room: Sequence[float]
    ) -> list[str | None]:
        """Answer the last turn of each conversation.

        Raises:
            InvalidValue: if the chat template cannot show a conversation.
            AuditError: if the model answers with numbers that are not finite.
        """
        rendered = [self._render(talk) for talk in conversations]
        groups: dict[int, list[int]] = defaultdict(list)
        for row, (talk, text, share) in enumerate(zip(conversations, rendered, room, strict=True)):
            tokens = self._tokens_for(talk, text, share)
            if tokens is not None:
                groups[tokens].append(row)
        answers: list[str | None] = [None] * len(conversations)
        for tokens, rows in sorted(groups.items()):
            texts = [rendered[row] for row in rows]
            written = self._target.write(texts, adapter=adapter, max_tokens=tokens)
            for row, answer in zip(rows, written, strict=True):
                answers[row] = self._cut(answer)
        return answers

    def _tokens_for(self, talk: Conversation, text: str, room: float) -> int | None:
        """Return how many tokens an answer may have; None if the conversation does not fit.

        It fits if an answer could hold the system prompt, or the part of it that was asked for.
        """
        system = self._count(talk.system)
        wanted = math.ceil((system * room + self._margin) / STEP) * STEP
        if self._window is None:
            return wanted
        # One for a start token. Rounded down, so that few lengths arise near the window's end.
        left = (self._window - self._count(text) - 1) // LEAST * LEAST
        least = max(LEAST, math.ceil(system * min(room, 1.0)))
        return min(left, wanted) if left >= least else None

    def _count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        if not text:
            return 0
        encoded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not self._chat, verbose=False
        )
        return len(encoded["input_ids"])

    def _render(self, talk: Conversation) -> str:
        """Return a conversation as the model reads it, up to where it answers."""
        return self._render_chat(talk) if self._chat else _render_plain(talk)

    def _render_chat(self, talk: Conversation) -> str:
        """Render with the tokenizer's template; its errors are not kept, as they may quote."""
        from jinja2 import TemplateError

        said = [
            {"role": ("user", "assistant")[i % 2], "content": turn}
            for i, turn in enumerate(talk.turns)
        ]
        system = [{"role": "system", "content": talk.system}] if talk.system else []
        merged = [{"role": "user", "content": f"{talk.system}\n\n{talk.turns[0]}"}, *said[1:]]
        reason = ""
        for messages in ([*system, *said], merged):
            try:
                text = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            except (TemplateError, ValueError, TypeError) as error:
                reason = type(error).__name__
            else:
                # A template that drops what it does not know would protect the prompt by accident.
                if talk.system.strip() in str(text):
                    return str(text)
        msg = f"The chat template cannot show a conversation under a system prompt ({reason})."
        raise InvalidValue(msg, hint="Audit with a tokenizer whose chat template takes one.")

    def _cut(self, answer: str) -> str:
        """End a plain answer where it speaks for the user."""
        return answer if self._chat else answer.split(_NEXT_TURN, 1)[0]


def _render_plain(talk: Conversation) -> str:
    """Write a conversation out, line by line."""
    lines = [f"System: {talk.system}"] if talk.system else []
    lines += [f"{_NAMES[i % 2]}: {turn}" for i, turn in enumerate(talk.turns)]
    return "\n".join([*lines, f"{_NAMES[1]}:"])


def assistant_for(model: Subject) -> TargetAssistant:
    """Return the assistant that a base model with its adapter is.

    Args:
        model: the adapted model, with the released adapter loaded.
    """
    tokenizer = model.base.tokenizer
    chat = bool(getattr(tokenizer, "chat_template", None))
    window = getattr(model.base.model.config, "max_position_embeddings", None)
    target = ModelTarget(model, max_length=window or 1, template=CHAT if chat else PLAIN)
    return TargetAssistant(target, tokenizer, window=window)
