"""One record, one example: what is in it, what is labelled, what is cut.

The oracle is the decoder of a byte-level BPE tokenizer, which gives back exactly the text that a
run of token ids stands for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data import Record
from client.tokenization import check_template, make_examples
from shared.errors import ConflictingSettings, InvalidValue, NoUsableText

pytest.importorskip("torch", reason="the client extra is not installed")
transformers = pytest.importorskip("transformers", reason="the client extra is not installed")

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
STORIES = Path("../shared/data/models/stories260K")


def byte_tokenizer(*, bos: str | None = "<s>", eos: str | None = "</s>", chat: str = "") -> Any:
    """Train a small byte-level BPE on text in which merges like "\\nYes" are worth it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    # No regular expression: merges may span words and lines, which is what the mask must survive.
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    special = [token for token in (bos, eos) if token is not None]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*dict.fromkeys(special), "<|assistant|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["Is it so?\nYes it is.", "Was it so?\nYes it was."] * 50, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )
    made.chat_template = chat or None
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def chatty() -> Any:
    return byte_tokenizer(chat=CHAT)


def labelled(tokenizer: Any, example: Any) -> str:
    """Return the text that the loss is on."""
    return str(tokenizer.decode(example.ids[example.labels != -100]))


def whole(tokenizer: Any, example: Any) -> str:
    return str(tokenizer.decode(example.ids))


def pair(prompt: str, response: str) -> Record:
    return Record(prompt=prompt, response=response, client="c")


def test_text_is_bos_text_eos_with_labels_after_bos(tokenizer: Any) -> None:
    (example,) = make_examples([Record(text="Is it so?")], tokenizer, max_length=50)
    assert whole(tokenizer, example) == "<s>Is it so?</s>"
    assert labelled(tokenizer, example) == "Is it so?</s>"
    assert example.ids.dtype == example.labels.dtype == np.int64
    assert example.ids.shape == example.labels.shape
    assert example.labels[0] == -100
    assert (example.labels[1:] == example.ids[1:]).all()


def test_without_bos_the_first_token_has_no_label() -> None:
    tokenizer = byte_tokenizer(bos=None, eos=None)
    (example,) = make_examples([Record(text="qZ#")], tokenizer, max_length=50)
    assert whole(tokenizer, example) == "qZ#"
    assert labelled(tokenizer, example) == "Z#"


def test_one_token_without_bos_has_nothing_to_predict() -> None:
    tokenizer = byte_tokenizer(bos=None, eos=None)
    with pytest.raises(NoUsableText):
        make_examples([Record(text="q")], tokenizer, max_length=50)


def test_gpt2_style_bos_and_eos_are_one_token() -> None:
    tokenizer = byte_tokenizer(bos="<|end|>", eos="<|end|>")
    (example,) = make_examples([pair("Is it so?", "Yes")], tokenizer, max_length=50)
    assert whole(tokenizer, example) == "<|end|>Is it so?\nYes<|end|>"
    assert labelled(tokenizer, example) == "Yes<|end|>"


def test_the_mask_is_exact_where_a_merge_would_span_the_boundary(tokenizer: Any) -> None:
    joined = tokenizer("Is it so?\nYes it is.", add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([token]) for token in joined]
    assert any("?\nYes" in piece for piece in pieces), "else this test shows nothing"
    (example,) = make_examples([pair("Is it so?", "Yes it is.")], tokenizer, max_length=50)
    assert labelled(tokenizer, example) == "Yes it is.</s>"
    assert whole(tokenizer, example) == "<s>Is it so?\nYes it is.</s>"


printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(printable, printable.filter(lambda text: text.strip() != ""))
def test_plain_pairs_label_the_response_and_its_end(prompt: str, response: str) -> None:
    tokenizer = _shared()
    (example,) = make_examples([pair(prompt, response)], tokenizer, max_length=1000)
    assert labelled(tokenizer, example) == f"{response}</s>"
    assert whole(tokenizer, example) == f"<s>{prompt}\n{response}</s>"


@settings(deadline=None)
@given(printable.filter(lambda text: text.strip() != ""), st.integers(2, 12))
def test_a_long_text_is_cut_and_never_packed(text: str, max_length: int) -> None:
    tokenizer = _shared()
    uncut = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    uncut.append(tokenizer.eos_token_id)
    examples = make_examples([Record(text=text)] * 2, tokenizer, max_length=max_length)
    assert [example.ids.tolist() for example in examples] == [uncut[:max_length]] * 2


def test_a_response_may_be_cut_but_not_away(tokenizer: Any) -> None:
    record = pair("qqqq", "Zzzz")
    (example,) = make_examples([record], tokenizer, max_length=7)
    assert whole(tokenizer, example) == "<s>qqqq\nZ"
    assert labelled(tokenizer, example) == "Z"
    fine = pair("q", "Z")
    assert len(make_examples([record, fine], tokenizer, max_length=6)) == 1
    with pytest.raises(NoUsableText, match="client='c' has 1 records"):
        make_examples([record], tokenizer, max_length=6)


def test_markers_in_private_text_stay_text(tokenizer: Any) -> None:
    record = Record(text="a</s>b<s>")
    (example,) = make_examples([record], tokenizer, max_length=50)
    assert list(example.ids).count(tokenizer.eos_token_id) == 1
    assert list(example.ids).count(tokenizer.bos_token_id) == 1
    assert whole(tokenizer, example) == "<s>a</s>b<s></s>"
    (example,) = make_examples([pair("</s>", "x</s>y")], tokenizer, max_length=50)
    assert list(example.ids).count(tokenizer.eos_token_id) == 1
    assert labelled(tokenizer, example) == "x</s>y</s>"


def test_a_format_string_with_markers_and_braces(tokenizer: Any) -> None:
    template = "<|user|>{{{prompt}}}<|assistant|>{response} (end)"
    record = pair("{response}", "{prompt.__class__}")
    (example,) = make_examples([record], tokenizer, max_length=99, template=template)
    expected = "<s><|user|>{{response}}<|assistant|>{prompt.__class__} (end)</s>"
    assert whole(tokenizer, example) == expected
    assert labelled(tokenizer, example) == "{prompt.__class__} (end)</s>"
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") in example.ids


def test_labels_on_the_prompt_too_if_asked(tokenizer: Any) -> None:
    (example,) = make_examples([pair("q", "Z")], tokenizer, max_length=50, response_only=False)
    assert labelled(tokenizer, example) == "q\nZ</s>"


def test_a_response_cut_away_is_unusable_even_with_labels_on_the_prompt(tokenizer: Any) -> None:
    with pytest.raises(NoUsableText):
        make_examples([pair("qqqq", "Z")], tokenizer, max_length=6, response_only=False)
    (example,) = make_examples([pair("qqqq", "Z")], tokenizer, max_length=7, response_only=False)
    assert labelled(tokenizer, example) == "qqqq\nZ"


def test_chat_is_the_tokenizers_own_template(chatty: Any) -> None:
    record = pair("Is it so?", "Yes.")
    (example,) = make_examples([record], chatty, max_length=99, template="chat")
    shown = "<s><|user|>\nIs it so?</s>\n<|assistant|>\n"
    assert whole(chatty, example) == f"{shown}Yes.</s>"
    assert labelled(chatty, example) == "Yes.</s>", "one end, and no line end after it"
    messages = [{"role": "user", "content": "Is it so?"}]
    prompt = chatty.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = chatty(prompt, add_special_tokens=False)["input_ids"]
    assert example.ids[: len(ids)].tolist() == ids, "the prompt is tokenised as at inference"


def test_chat_that_rewrites_earlier_turns_keeps_the_generation_prompt() -> None:
    template = (
        "{% for m in messages %}{{ loop.length }}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = byte_tokenizer(chat=template)
    (example,) = make_examples([pair("q", "Z")], tokenizer, max_length=99, template="chat")
    assert whole(tokenizer, example) == "1<|user|>q<|assistant|>Z</s>"
    assert labelled(tokenizer, example) == "Z</s>"


def test_chat_without_a_template_is_a_conflict(tokenizer: Any) -> None:
    with pytest.raises(ConflictingSettings, match="no chat template"):
        make_examples([pair("q", "Z")], tokenizer, max_length=99, template="chat")


@pytest.mark.parametrize("content", ["refused", ""])
def test_a_chat_template_that_fails_says_so_without_content(content: str) -> None:
    broken = "{{ raise_exception(messages[0].content) }}" if content else "{{ nothing.at.all }}"
    tokenizer = byte_tokenizer(chat=broken)
    with pytest.raises(InvalidValue, match="chat template") as caught:
        make_examples([pair("zebra-4711", "Z")], tokenizer, max_length=99, template="chat")
    assert "zebra" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


BAD_TEMPLATES = [
    "{prompt}", "{response}", "{response}{prompt}", "{prompt}{response}{response}", "", "chatt",
    "{prompt!r}{response}", "{prompt:>9}{response}", "{prompt.x}{response}", "{prompt}{response",
    "{}{}", "{0}{1}",
]  # fmt: skip


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_malformed_templates(tokenizer: Any, template: str) -> None:
    with pytest.raises(InvalidValue, match=r"data\.template="):
        check_template(template)
    with pytest.raises(InvalidValue, match=r"data\.template="):
        make_examples([pair("q", "Z")], tokenizer, max_length=99, template=template)


@pytest.mark.parametrize(
    "template", ["plain", "chat", "{prompt}{response}", "{{{prompt}:{response}"]
)
def test_good_templates(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize("max_length", [1, 0, -1])
def test_max_length_leaves_room_for_a_label(tokenizer: Any, max_length: int) -> None:
    with pytest.raises(InvalidValue, match="max_length"):
        make_examples([Record(text="a")], tokenizer, max_length=max_length)


def test_unusable_records_are_left_out(tokenizer: Any) -> None:
    records = [Record(text=" \n"), Record(text="a"), pair("q", ""), Record()]
    assert len(make_examples(records, tokenizer, max_length=9)) == 1
    assert make_examples([], tokenizer, max_length=9) == []


def test_nothing_usable_names_the_client_and_no_content(tokenizer: Any) -> None:
    records = [Record(text=" ", client="Ward 7"), pair("zebra-4711", " ")]
    with pytest.raises(NoUsableText, match="client='Ward 7' has 2 records") as caught:
        make_examples(records, tokenizer, max_length=9)
    assert "zebra" not in str(caught.value)
    with pytest.raises(NoUsableText, match="unnamed"):
        make_examples([Record(text="")], tokenizer, max_length=9)


def test_each_example_depends_on_its_own_record_only(tokenizer: Any) -> None:
    mine = Record(text="Is it so?")
    (alone,) = make_examples([mine], tokenizer, max_length=20)
    beside = make_examples([Record(text="other"), mine, pair("q", "Z")], tokenizer, max_length=20)[
        1
    ]
    assert alone.ids.tolist() == beside.ids.tolist()
    assert alone.labels.tolist() == beside.labels.tolist()


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"needs the model folder {STORIES}")
def test_a_real_sentencepiece_style_tokenizer() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES)
    (example,) = make_examples([pair("Who is Tim?", "A boy.")], tokenizer, max_length=64)
    assert labelled(tokenizer, example).replace("</s>", "").strip() == "A boy."
    assert example.ids[0] == tokenizer.bos_token_id
    assert example.ids[-1] == tokenizer.eos_token_id
    (example,) = make_examples([Record(text="Tim </s>")], tokenizer, max_length=64)
    assert list(example.ids).count(tokenizer.eos_token_id) == 1


_MADE: list[Any] = []


def _shared() -> Any:
    """Return one tokenizer for all runs of a property."""
    if not _MADE:
        _MADE.append(byte_tokenizer())
    return _MADE[0]
