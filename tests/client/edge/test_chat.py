"""A chat template without transformers renders what transformers renders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data import Record
from client.edge.chat import ChatTemplate
from client.edge.chatexport import chat_template_of
from client.edge.program import CHAT, StepFile
from client.edge.tokens import StepTokenizer
from client.tokenization import make_examples
from shared.errors import BaseModelMismatch, InvalidValue, TokenizerMissing
from tests.client.edge.test_training import manifest
from tests.client.test_tokenization import CHAT as TEMPLATE
from tests.client.test_tokenization import byte_tokenizer

CHATML = (
    "{%- if messages[0].role != 'system' -%}<|im_start|>system\nYou help.<|im_end|>\n{%- endif %}\n"
    "{% for m in messages %}\n"
    "    {%- set text = m['content'] | trim %}\n"
    "    {{- '<|im_start|>' + m['role'] + '\\n' + text + '<|im_end|>' + '\\n' }}\n"
    "{% endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ALTERNATES = (
    "{{ bos_token }}{% set seen = namespace(n=0) %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}"
    "{% if m.role == 'tool' %}{% continue %}{% endif %}{% set seen.n = seen.n + 1 %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{{ seen.n }}{{ messages | tojson }}{% if tools is none %}!{% endif %}"
)
TEMPLATES = [TEMPLATE, CHATML, ALTERNATES, "{{ strftime_now('%Y') }}{{ documents }}{{ unk_token }}"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer(chat=TEMPLATE)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(TEMPLATES), st.booleans())
def test_a_conversation_reads_as_in_transformers(
    tokenizer: Any, asked: str, said: str, template: str, generate: bool
) -> None:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    ours = ChatTemplate(template, tokenizer.special_tokens_map)
    for turns in (messages, messages[:1]):
        expected = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=generate
        )
        assert ours.render(turns, add_generation_prompt=generate) == expected


def step_tokenizer(theirs: Any, folder: Path) -> StepTokenizer:
    """Return the tokenizer of a step whose model has the same one."""
    template = chat_template_of(theirs)
    assert template is not None
    (folder / "tokenizer.json").write_text(theirs.backend_tokenizer.to_str(), encoding="utf-8")
    (folder / CHAT).write_text(template.to_json(), encoding="utf-8")
    known = manifest()
    files = tuple(sorted([*known.files, StepFile(name=CHAT, size=1, sha256="0" * 64)], key=_name))
    ends = {"bos": theirs.bos_token_id, "eos": theirs.eos_token_id}
    return StepTokenizer(
        folder / "tokenizer.json", replace(known, vocabulary=1 << 20, files=files, **ends)
    )


def _name(file: StepFile) -> str:
    return file.name


def test_examples_are_those_of_transformers(tokenizer: Any, tmp_path: Path) -> None:
    ours = step_tokenizer(tokenizer, tmp_path)
    records = [
        Record(prompt="Is it so?", response="Yes. </s> <b>"),
        Record(prompt="", response="No"),
    ]
    said: dict[str, Any] = {"max_length": 40, "template": "chat"}
    for expected, found in zip(
        make_examples(records, tokenizer, **said),
        make_examples(records, ours, **said),  # type: ignore[arg-type]
        strict=True,
    ):
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.labels.tolist() == expected.labels.tolist()
    with pytest.raises(InvalidValue, match="tokenize"):
        ours.apply_chat_template([], tokenize=True, add_generation_prompt=False)


def test_a_template_that_refuses_says_nothing_of_the_conversation(
    tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(chat="{{ raise_exception(messages[0].content) }}")
    ours = step_tokenizer(tokenizer, tmp_path)
    records = [Record(prompt="zebra-4711", response="Z")]
    with pytest.raises(InvalidValue, match="chat template") as caught:
        make_examples(records, ours, max_length=40, template="chat")  # type: ignore[arg-type]
    assert "zebra" not in str(caught.value)


def test_the_template_runs_in_a_sandbox(tokenizer: Any) -> None:
    made = ChatTemplate("{{ messages.__class__.__mro__ }}", {})
    with pytest.raises(jinja2.exceptions.SecurityError):
        made.render([{"role": "user", "content": ""}], add_generation_prompt=True)


def test_what_is_not_rendered_alike_is_not_exported() -> None:
    assert chat_template_of(byte_tokenizer()) is None
    assert chat_template_of(byte_tokenizer(chat="{% broken")) is None
    other = byte_tokenizer(chat=TEMPLATE)
    other.apply_chat_template = lambda *_, **__: "its own way"
    assert chat_template_of(other) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{" * 5000,
        json.dumps({"template": "x"}),
        json.dumps({"template": 1, "tokens": {}}),
        json.dumps({"template": "x", "tokens": {"bos_token": 1}}),
        json.dumps({"template": "x", "tokens": []}),
        json.dumps({"template": "{% broken", "tokens": {}}),
        json.dumps({"template": "x" * (1 << 20), "tokens": {}}),
    ],
)
def test_a_file_that_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(TokenizerMissing, match="chat template"):
        ChatTemplate.from_json(text)


def test_a_step_has_no_file_beside_those_that_are_known() -> None:
    known = manifest()
    with pytest.raises(BaseModelMismatch, match="files"):
        replace(known, files=(StepFile(name="a.bin", size=1, sha256="0" * 64), *known.files))
