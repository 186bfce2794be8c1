"""The tokenizer without transformers gives the ids that transformers gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from client.data import Record
from client.edge.tokens import StepTokenizer
from client.tokenization import make_examples
from shared.errors import ConflictingSettings, TokenizerMissing
from simulations.basepath import ASSETS
from tests.client.edge.test_training import manifest

DEMO = ASSETS / "demo"
THEIRS = AutoTokenizer.from_pretrained(DEMO)


def ours() -> StepTokenizer:
    terms = replace(
        manifest(), vocabulary=1 << 20, bos=THEIRS.bos_token_id, eos=THEIRS.eos_token_id
    )
    return StepTokenizer(DEMO / "tokenizer.json", terms)


OURS = ours()
MARKS = [str(mark) for mark in THEIRS.all_special_tokens]


@settings(max_examples=60)
@given(st.text(max_size=40), st.sampled_from(MARKS), st.booleans())
def test_ids_are_those_of_transformers(text: str, mark: str, split: bool) -> None:
    said = f"{text}{mark}{text}"
    expected = THEIRS(said, add_special_tokens=False, split_special_tokens=split, verbose=False)[
        "input_ids"
    ]
    found = OURS(said, add_special_tokens=False, split_special_tokens=split)["input_ids"]
    assert found == expected


def test_examples_are_those_of_transformers() -> None:
    records = [
        Record(text="The patient slept well. </s>"),
        Record(prompt="How are you?", response="Well."),
    ]
    for record in records:
        pair = [
            make_examples([record], tokenizer, max_length=24)[0]  # type: ignore[arg-type]
            for tokenizer in (THEIRS, OURS)
        ]
        assert pair[0].ids.tolist() == pair[1].ids.tolist()
        assert pair[0].labels.tolist() == pair[1].labels.tolist()


def test_a_chat_template_is_refused() -> None:
    with pytest.raises(ConflictingSettings, match="chat"):
        make_examples(
            [Record(prompt="a", response="b")],
            OURS,  # type: ignore[arg-type]
            max_length=8,
            template="chat",
        )


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TokenizerMissing, match="no tokenizer"):
        StepTokenizer(tmp_path / "tokenizer.json", manifest())
