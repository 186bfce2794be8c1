"""From private records to token ids and labels: one record, one example, never packed.

Packing would put two records into one example, and the unit of example-level privacy would no
longer be a record. What does not fit ``max_length`` is cut off on the right.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from client.chatturn import render_chat
from client.data import Record
from client.examples import Example
from shared.errors import ConflictingSettings, InvalidValue, NoUsableText
from shared.validate import positive_integer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "plain"
CHAT = "chat"
_IGNORED = -100
_PLAIN_MIDDLE = "\n"

Rendered = tuple[str, str]
Renderer = Callable[[str, str], Rendered]


def make_examples(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    template: str = PLAIN,
    response_only: bool = True,
) -> list[Example]:
    """Tokenise the records of one client.

    A text record becomes ``bos + text + eos`` with labels on everything after the first token. A
    prompt with its response is rendered by the template; prompt and response are tokenised apart,
    so the mask is exact even where a merge would span the boundary, and labels are on the
    response and its end. Markers such as ``</s>`` inside private text (and in ``plain`` pairs)
    stay text; a chat template or a format string is tokenised as a whole, as at inference, and a
    marker inside a value counts there.

    Args:
        records: of one client; may be empty.
        tokenizer: of the base model. Where it has no bos or eos token, none is added.
        max_length: most tokens of an example; an example that is cut has no end token.
        template: ``"plain"`` (prompt, line end, response), ``"chat"`` (the tokenizer's own), or
            a format string with ``{prompt}`` before ``{response}``; ``{{`` and ``}}`` are braces.
        response_only: whether the labels of a pair leave the prompt out.

    Returns:
        One example per usable record, in order. Unusable are records of white space only, and
        those whose response is cut away completely.

    Raises:
        NoUsableText: if there are records and none is usable; names the client, no content.
        ConflictingSettings: for ``"chat"`` with a tokenizer that has no chat template.
        InvalidValue: for a malformed template, a chat template that fails, or a ``max_length``
            below 2.
    """
    positive_integer(max_length=max_length)
    if max_length < 2:
        msg = f"data.max_length={max_length}, expected at least 2: one token to read, one to say."
        raise InvalidValue(msg)
    render = _renderer(template, tokenizer) if _has_pairs(records) else None
    examples = []
    for record in records:
        if not record.usable:
            continue
        if record.response is None or render is None:
            example = _text_example(str(record.text), tokenizer, max_length)
        else:
            head, tail = render(record.prompt or "", record.response)
            example = _pair_example(
                head, tail, tokenizer, max_length, template=template, response_only=response_only
            )
        if example is not None:
            examples.append(example)
    if records and not examples:
        name = records[0].client or "(unnamed)"
        msg = f"client={name!r} has {len(records)} records and none is usable text."
        hint = f"Empty, or all of the response is beyond data.max_length={max_length}."
        raise NoUsableText(msg, hint=hint)
    return examples


def check_template(template: str) -> None:
    """Refuse a template that :func:`make_examples` could not use, without needing a tokenizer.

    Raises:
        InvalidValue: if it is neither a known name nor a format string with the two fields.
    """
    if template not in (PLAIN, CHAT):
        _literals(template)


def _has_pairs(records: Sequence[Record]) -> bool:
    """Tell whether any record is a prompt with a response."""
    return any(record.response is not None for record in records)


def _text_example(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example | None:
    """Return ``bos + text + eos`` cut to length, or None without a token to predict."""
    body = _encode(text, tokenizer, literal=True)
    if not body:
        return None
    start = len(_token(tokenizer.bos_token_id))
    ids = _token(tokenizer.bos_token_id) + body + _token(tokenizer.eos_token_id)
    return _example(ids[:max_length], first_label=max(start, 1))


def _pair_example(
    head: str,
    tail: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    template: str,
    response_only: bool,
) -> Example | None:
    """Return prompt and response with labels on the response, or None if it is cut away."""
    literal = template == PLAIN
    bos, eos = _token(tokenizer.bos_token_id), _token(tokenizer.eos_token_id)
    before = _encode(head, tokenizer, literal=literal)
    answer = _encode(tail, tokenizer, literal=literal)
    if not answer:
        return None
    if template != CHAT:
        before = bos + before
    answer = _ended(answer, eos)
    ids = (before + answer)[:max_length]
    first_answer = max(len(before), 1)
    if first_answer >= len(ids):
        return None
    return _example(ids, first_label=first_answer if response_only else max(len(bos), 1))


def _ended(answer: list[int], eos: list[int]) -> list[int]:
    """End an answer with eos once; chat templates may already have done so, and add a line end."""
    if eos and eos[0] in answer:
        last = len(answer) - 1 - answer[::-1].index(eos[0])
        return answer[: last + 1]
    return answer + eos


def _example(ids: list[int], *, first_label: int) -> Example | None:
    """Return the arrays, or None if no label is left."""
    if first_label >= len(ids):
        return None
    array = np.asarray(ids, dtype=np.int64)
    labels = array.copy()
    labels[:first_label] = _IGNORED
    return Example(ids=array, labels=labels)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, *, literal: bool) -> list[int]:
    """Return the ids of a text; ``literal`` keeps markers such as ``</s>`` ordinary text."""
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)
    return [int(token) for token in encoded["input_ids"]]


def _token(token_id: int | None) -> list[int]:
    """Return a special token as a list of none or one."""
    return [] if token_id is None else [token_id]


def _renderer(template: str, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """Return the function that renders a pair as prompt text and response text."""
    if template == CHAT:
        return _chat_renderer(tokenizer)
    before, middle, after = ("", _PLAIN_MIDDLE, "") if template == PLAIN else _literals(template)
    return lambda prompt, response: (f"{before}{prompt}{middle}", f"{response}{after}")


def _literals(template: str) -> tuple[str, str, str]:
    """Split a format string into what stands before, between and after its two fields."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        parts = []
    literals, fields = [""], []
    for literal, name, spec, conversion in parts:
        literals[-1] += literal
        if name is not None:
            fields.append((name, spec, conversion))
            literals.append("")
    if fields != [("prompt", "", None), ("response", "", None)]:
        msg = f"data.template={template!r}, expected {{prompt}} and then {{response}}, once each."
        raise InvalidValue(msg, hint='Or "plain", or "chat". Write braces as {{ and }}.')
    return literals[0], literals[1], literals[2]


def _chat_renderer(tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """Return the renderer of the tokenizer's own chat template."""
    if not getattr(tokenizer, "chat_template", None):
        msg = 'data.template="chat", but the tokenizer of the base model has no chat template.'
        hint = 'Use "plain", or a format string with {prompt} and {response}.'
        raise ConflictingSettings(msg, hint=hint)

    def render(prompt: str, response: str) -> Rendered:
        user = {"role": "user", "content": prompt}
        head = render_chat(tokenizer, [user], generate=True)
        full = render_chat(tokenizer, [user, {"role": "assistant", "content": response}])
        # A template may rewrite earlier turns; the generation prompt is what inference will show.
        return head, full[len(head) :] if full.startswith(head) else response

    return render
