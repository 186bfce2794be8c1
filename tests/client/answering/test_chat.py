"""A question as a user's turn, in every runtime; oracle: transformers' own chat template."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.inference import LocalModel
from client.tokenization import make_examples
from shared.errors import AdapterCorrupt, InvalidValue, TokenizerMissing
from tests.client.answering import standin
from tests.client.answering.conftest import Field, make_field
from tests.client.exports.conftest import MakeAdaptedFolder

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}"
    "{% if not m.content %}{{ raise_exception('empty') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION = "What did the king say?"


@pytest.fixture(scope="module")
def chatting(adapted_base: MakeAdaptedFolder, tmp_path_factory: pytest.TempPathFactory) -> Field:
    """A base with a chat template."""
    root = tmp_path_factory.mktemp("chat")
    case = adapted_base("llama")
    shutil.copytree(case.folder, root / "base")
    (root / "base" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return make_field(root, replace(case, folder=root / "base"))


def models(field: Field) -> dict[str, LocalModel]:
    """Return the model in each runtime."""
    return {
        "torch": LocalModel.load(field.home),
        "onnx": LocalModel.load(field.home, base=field.export("onnx")),
        "llama": LocalModel.load(field.home, base=field.export("f16", base_type="f16")),
    }


def test_every_runtime_asks_as_training_did(
    chatting: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.data import Record

    monkeypatch.setitem(sys.modules, "llama_cpp", standin)
    tokenizer: Any = chatting.case.load().tokenizer
    turns = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id in expected
    record = Record(prompt=QUESTION, response="Nothing.", client="a")
    [example] = make_examples([record], tokenizer, max_length=200, template="chat")
    assert example.ids[: len(expected)].tolist() == expected
    answers = {}
    for runtime, model in models(chatting).items():
        assert model.runtime == runtime
        assert model.engine.ask(QUESTION) == expected
        # A marker in a plain prompt is text again afterwards.
        assert tokenizer.eos_token_id not in model.engine.encode(tokenizer.eos_token)
        answers[runtime] = model.generate(QUESTION, max_tokens=12, chat=True)
        assert answers[runtime].prompt_tokens == len(expected)
        streamed = "".join(model.stream(QUESTION, max_tokens=12, chat=True))
        assert streamed == answers[runtime].text
        with pytest.raises(InvalidValue, match="cannot show"):
            model.generate("", chat=True)
    assert answers["onnx"] == answers["llama"] == answers["torch"]


def test_a_base_without_a_template_refuses(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", standin)
    for model in models(field).values():
        with pytest.raises(TokenizerMissing, match="no chat template"):
            model.generate(QUESTION, chat=True)


def test_a_template_that_was_changed_is_not_used(chatting: Field, tmp_path: Path) -> None:
    shutil.copytree(chatting.export("onnx"), tmp_path / "onnx")
    (tmp_path / "onnx" / "chat.json").write_text('{"template": "x", "tokens": {}}')
    with pytest.raises(AdapterCorrupt):
        LocalModel.load(chatting.home, base=tmp_path / "onnx")
