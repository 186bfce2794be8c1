"""A model's chat template without transformers: the text that it renders, to the character.

The template comes with the exported step, whose digest the owner wrote down; it is run in jinja2's
sandbox all the same. An export keeps it only if what is rendered here is what transformers renders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.canonical import canonical_json
from shared.errors import TokenizerMissing

if TYPE_CHECKING:
    from jinja2.parser import Parser

LARGEST: Final = 1 << 20
_KEYS = {"template", "tokens"}

Messages = Sequence[Mapping[str, str]]


class ChatTemplate:
    """Renders a conversation as the model's tokenizer would.

    Args:
        template: in Jinja, as the tokenizer has it.
        tokens: the tokenizer's special tokens by name, such as ``bos_token``.

    Raises:
        TokenizerMissing: if it is no template.
    """

    def __init__(self, template: str, tokens: Mapping[str, str]) -> None:
        self._said = {"template": template, "tokens": dict(tokens)}
        self._tokens = dict(tokens)
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            _refuse(type(error).__name__)

    @classmethod
    def from_json(cls, text: str) -> ChatTemplate:
        """Read what :meth:`to_json` writes.

        Raises:
            TokenizerMissing: for anything else.
        """
        if not len(text) <= LARGEST:
            _refuse(f"more than {LARGEST} characters")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            _refuse("no JSON")
        if not isinstance(found, dict) or set(found) != _KEYS:
            _refuse("other keys")
        template, tokens = found["template"], found["tokens"]
        texts = [template, *tokens.values()] if isinstance(tokens, dict) else [None]
        if not all(isinstance(one, str) for one in texts):
            _refuse("something that is no text")
        return cls(template, tokens)

    def to_json(self) -> str:
        """Return the file's text."""
        return canonical_json(self._said)

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """Return the text of a conversation.

        Args:
            messages: role and content of each turn.
            add_generation_prompt: whether the text ends where an answer begins.

        Raises:
            jinja2.TemplateError: if the template refuses the conversation; it may quote it.
        """
        return self._template.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._tokens,
        )


class _Generation(Extension):
    """The block ``{% generation %}``, which marks an answer and prints what it holds."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own convention

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block without its marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what templates may use."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _tojson(value: Any, ensure_ascii: bool = False, **said: Any) -> str:  # noqa: ANN401
    """Write JSON without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **said)


def _raise_exception(message: str) -> NoReturn:
    """Refuse a conversation, as templates do."""
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    """Return the local time, as templates write it."""
    return datetime.now().astimezone().strftime(form)


def _refuse(what: str) -> NoReturn:
    """Raise the error of a file that is no chat template."""
    msg = f"The chat template of the exported step cannot be used ({what})."
    raise TokenizerMissing(msg, hint="Export the step again.") from None
