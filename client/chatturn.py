"""Turns of a conversation by a tokenizer's chat template, in transformers or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shared.errors import InvalidValue, TokenizerMissing

_TRAINING = 'Use "plain", or a format string with {prompt} and {response}.'
_ANSWERING = "Ask without --chat."


class Chatting(Protocol):
    """A tokenizer's chat template."""

    @property
    def chat_template(self) -> object:
        """Return it, or nothing."""

    def apply_chat_template(self, *said: Any, **options: Any) -> Any:  # noqa: ANN401
        """Render a conversation."""


def render_chat(
    tokenizer: Chatting,
    messages: Sequence[Mapping[str, str]],
    *,
    generate: bool = False,
    hint: str = _TRAINING,
) -> str:
    """Return the text of a conversation.

    Args:
        tokenizer: of the base model; it has a template.
        messages: role and content of each turn.
        generate: whether the text ends where an answer begins.
        hint: what to do where the template refuses.

    Raises:
        InvalidValue: if the template refuses. Its own error is not kept as a cause, as it may quote
            a message.
    """
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        )
    except TemplateError as error:
        reason = type(error).__name__
    msg = f"The chat template of the base model's tokenizer cannot show this ({reason})."
    raise InvalidValue(msg, hint=hint)


def as_question(question: str, tokenizer: Chatting) -> str:
    """Return a question as a user's turn, up to where the answer begins.

    That is what examples begin with under ``data.template = "chat"``.

    Args:
        question: any text; a marker inside counts, as it does in training.
        tokenizer: of the base model.

    Raises:
        TokenizerMissing: if it has no chat template.
        InvalidValue: if the template refuses the question, or shows nothing.
    """
    if not tokenizer.chat_template:
        msg = "The base model has no chat template."
        raise TokenizerMissing(msg, hint=_ANSWERING)
    turn = render_chat(
        tokenizer, [{"role": "user", "content": question}], generate=True, hint=_ANSWERING
    )
    if not turn:
        msg = "The chat template of the base model shows nothing of a question."
        raise InvalidValue(msg, hint=_ANSWERING)
    return turn
