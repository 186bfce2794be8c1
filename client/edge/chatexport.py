"""The chat template that goes with an exported step, held against transformers before it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2

from client.edge.chat import ChatTemplate, Messages
from shared.errors import TokenizerMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

_TURNS = ("How are you? <b>&é</b>", "  Well,\n\nthank you.  ")


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """Return a tokenizer's chat template; None if it has none that is rendered alike without it.

    Args:
        tokenizer: of the base model.

    Returns:
        A template that renders a prompt and a pair as ``apply_chat_template`` does, to the
        character, or refuses what that refuses.
    """
    said: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(said, dict):
        said = said.get("default")
    if not isinstance(said, str):
        return None
    try:
        template = ChatTemplate(said, tokenizer.special_tokens_map)
    except TokenizerMissing:
        return None
    alike = all(
        _rendered(template, messages, generate) == _theirs(tokenizer, messages, generate)
        for messages, generate in _samples()
    )
    return template if alike else None


def _samples() -> Iterator[tuple[Messages, bool]]:
    """Yield the two conversations that training renders."""
    user = {"role": "user", "content": _TURNS[0]}
    yield [user], True
    yield [user, {"role": "assistant", "content": _TURNS[1]}], False


def _rendered(template: ChatTemplate, messages: Messages, generate: bool) -> str | None:
    """Return what is rendered here; None for a refusal."""
    try:
        return template.render(messages, add_generation_prompt=generate)
    except jinja2.TemplateError:
        return None


def _theirs(tokenizer: Any, messages: Messages, generate: bool) -> str | None:  # noqa: ANN401
    """Return what transformers renders; None for a refusal."""
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generate
            )
        )
    except jinja2.TemplateError:
        return None
