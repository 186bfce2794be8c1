"""Rare tokens: of every family of tokenizers, and canaries that training would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shared.errors import AuditError, TokenizerMissing
from simulations import raretokens
from simulations.basepath import ASSETS
from simulations.canaries import plan_canaries
from simulations.canaryplan import KINDS, CanaryPlan
from simulations.public_text import public_documents
from simulations.raretokens import (
    MAX_SHARE,
    open_tokenizer,
    rare_tokens,
    require_readable,
    require_tokens,
)

SPECIAL = ["<s>", "</s>", "<unk>"]


def _texts() -> list[str]:
    return list(islice(public_documents(5), 400))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    make: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerBase = make(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return wrapped


def byte_level() -> PreTrainedTokenizerBase:
    """Byte-level BPE, as of GPT-2 and Llama 3."""
    return open_tokenizer(str(ASSETS / "demo"), revision=None)


def unigram() -> PreTrainedTokenizerBase:
    """A unigram model over text with marked spaces, as of T5 and Llama 2."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=3000, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _wrapped(tokenizer)


def test_tokens_are_counted_once_for_each_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raretokens, "_COUNTED", {})
    one, other = byte_level(), unigram()
    found = rare_tokens(one, wanted=20), rare_tokens(other, wanted=20)
    assert found[0] != found[1]
    monkeypatch.setattr(raretokens, "_public", lambda: pytest.fail("counted again"))
    assert (rare_tokens(byte_level(), wanted=20), rare_tokens(other, wanted=20)) == found
    # Of the oldest nothing is kept when there are too many.
    monkeypatch.setattr(raretokens, "_MOST_COUNTED", 2)
    monkeypatch.setattr(raretokens, "_public", lambda: ("a b",))
    rare_tokens(word_piece(), wanted=1)
    assert len(raretokens._COUNTED) == 2


def word_piece() -> PreTrainedTokenizerBase:
    """Words and their pieces, as of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=2000, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _wrapped(tokenizer)


@pytest.mark.parametrize("make", [byte_level, unigram, word_piece])
def test_rare_tokens_are_one_token_and_rare(make: Any) -> None:
    tokenizer: PreTrainedTokenizerBase = make()
    found = rare_tokens(tokenizer, wanted=60)
    assert len(set(found)) == len(found) == 60
    assert found[:20] == rare_tokens(tokenizer, wanted=20)
    known = set(tokenizer.all_special_tokens)
    documents = list(islice(public_documents(0), 2000))
    ids = [i for text in documents for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    for text in found:
        (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert text.isprintable()
        assert text.strip() == text
        assert len(text) > 1
        assert text not in known
        assert ids.count(token) <= MAX_SHARE * len(ids)


def test_tokens_that_no_text_holds_come_last() -> None:
    tokenizer = byte_level()
    found = rare_tokens(tokenizer, wanted=10_000)
    text = "\n".join(islice(public_documents(0), 2000))
    (known,) = (set(ids) for ids in tokenizer([text], add_special_tokens=False)["input_ids"])
    seen = [tokenizer(t, add_special_tokens=False)["input_ids"][0] in known for t in found]
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {True, False}
    assert len(found) < 10_000


def test_too_few_are_an_error_with_both_numbers() -> None:
    with pytest.raises(AuditError, match=r"audit\.canaries=3 .* has 2 tokens"):
        require_tokens(["ab", "cd"], 3)
    require_tokens(["ab", "cd"], 2)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissing):
        open_tokenizer(str(tmp_path), revision=None)


def _plan(tokens: Sequence[str] | None = None) -> CanaryPlan:
    if tokens is None:
        tokens = rare_tokens(byte_level(), wanted=8)
    return plan_canaries(count=8, population=20, seed=1, kinds=KINDS, tokens=tokens)


@pytest.mark.parametrize("template", ["plain", "Q: {prompt}\nA: {response}"])
def test_canaries_fit_and_stay_what_they_are_in_any_template(template: str) -> None:
    require_readable(_plan(), byte_level(), max_length=96, template=template)


def test_canaries_that_would_be_cut() -> None:
    with pytest.raises(AuditError, match=r"Of 16 canaries 16 do not fit data\.max_length=8, and 0"):
        require_readable(_plan(), byte_level(), max_length=8, template="plain")


def test_tokens_that_the_template_changes() -> None:
    template = "{prompt}\n{response}s"
    with pytest.raises(AuditError, match=r"and [1-8] are changed by data\.template"):
        require_readable(_plan(["tre", "ple", *"qwertz"]), byte_level(), max_length=96,
                         template=template)  # fmt: skip


def test_a_canary_without_text_is_no_canary() -> None:
    plan = _plan()
    empty = replace(plan.canaries[0], text=" ")
    damaged = replace(plan, canaries=(empty, *plan.canaries[1:]))
    with pytest.raises(AuditError, match="1 are changed"):
        require_readable(damaged, byte_level(), max_length=96, template="plain")
