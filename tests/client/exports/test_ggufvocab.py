"""Tokenizers in llama.cpp's terms; oracles: llama.cpp's own two algorithms, written out here."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from client.exports.ggufvocab import BYTE, CONTROL, NORMAL, UNUSED, Vocabulary, read_vocabulary
from client.inference import base_folder
from client.model import load_base
from shared.errors import UnsupportedModel

TEXTS = [
    "It was a dark night, wasn't it? In 1999 there were 12 of them.",
    "  two  spaces\nand a line;\ttab",
    "Zażółć gęślą jaźń, 東京, 🙂!",
    "",
]
SPACE = "\u2581"


def byte_letters() -> dict[int, str]:
    """The characters that stand for bytes since GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(other)}


def llama_cpp_bpe(vocabulary: Vocabulary, text: str) -> list[int]:
    """llama.cpp's byte-level BPE of ASCII text by the rule "smollm": digits alone, then GPT-2."""
    assert vocabulary.pre == "smollm"
    letters, numbers = byte_letters(), {t: i for i, t in enumerate(vocabulary.tokens)}
    ranks = {tuple(m.split(" ")): rank for rank, m in enumerate(vocabulary.merges)}
    words = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]+|\s+(?!\S)|\s+")
    found = []
    for piece in re.split(r"(\d)", text):
        for word in words.findall(piece):
            parts = [letters[byte] for byte in word.encode()]
            while len(parts) > 1:
                pairs = [(ranks.get((a, b), 1 << 30), i) for i, (a, b) in enumerate(_pairs(parts))]
                rank, at = min(pairs)
                if rank == 1 << 30:
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found += [numbers[part] for part in parts]
    return found


def llama_cpp_spm(vocabulary: Vocabulary, text: str) -> list[int]:
    """llama.cpp's SentencePiece: neighbours with the largest score first, leftmost of equals."""
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    parts = list((" " + text).replace(" ", SPACE)) if text else []
    while True:
        known = [(a + b, i) for i, (a, b) in enumerate(_pairs(parts)) if a + b in numbers]
        if not known:
            break
        _, at = min((-vocabulary.scores[numbers[both]], i) for both, i in known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found = []
    for part in parts:
        whole = [numbers[part]] if part in numbers else None
        found += whole or [numbers[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def _pairs(parts: list[str]) -> list[tuple[str, str]]:
    return list(pairwise(parts))


@pytest.mark.parametrize("text", [*TEXTS[:2], TEXTS[3]])
def test_the_demo_model_cuts_text_by_the_rule_smollm(text: str) -> None:
    tokenizer: Any = load_base(str(base_folder("demo"))).tokenizer
    vocabulary = read_vocabulary(tokenizer, 1282)
    truth = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert llama_cpp_bpe(vocabulary, text) == truth
    assert vocabulary.types[:4] == (CONTROL, CONTROL, CONTROL, NORMAL)
    assert vocabulary.types[1280:] == (UNUSED, UNUSED)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.unk) == (0, 1, None)


def sentencepiece(merges: list[tuple[str, str]], **changes: Any) -> Any:
    """A small tokenizer with bytes, letters and what the merges make."""
    names = [*[f"<0x{byte:02X}>" for byte in range(256)], "<s>", "</s>", "<unk>"]
    letters = sorted({letter for pair in merges for part in pair for letter in part})
    tokens = dict.fromkeys([*names, *letters, *(a + b for a, b in merges)])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    options = {"byte_fallback": True, "unk_token": "<unk>", **changes}
    inner = Tokenizer(BPE(vocab=vocabulary, merges=merges, **options))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MERGES = [(SPACE, "t"), ("h", "e"), (f"{SPACE}t", "he"), ("o", "n"), ("on", "e"), ("o", "t")]


@pytest.mark.parametrize("text", ["the one", "one  the tone", "oneé 1\n", "hhee", *TEXTS])
def test_sentencepiece_gets_scores_that_merge_in_the_same_order(text: str) -> None:
    tokenizer = sentencepiece(MERGES)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer) + 2)
    assert (vocabulary.model, vocabulary.space_prefix) == ("llama", True)
    assert vocabulary.types[65] == BYTE
    truth = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert llama_cpp_spm(vocabulary, text) == truth


def test_sentencepiece_whose_merges_are_no_scores_is_refused() -> None:
    def refused(tokenizer: Any, why: str) -> None:
        with pytest.raises(UnsupportedModel, match=why):
            read_vocabulary(tokenizer, 400)

    refused(sentencepiece(MERGES, byte_fallback=False), "without bytes")
    # "one" could also come from "o" and "ne", which is a token, and that is no merge
    refused(sentencepiece([*MERGES, ("n", "e")]), "no scores")
    # "abc" is made of "ab" and "c", later of "a" and "bc", with another merge between
    apart = [("a", "b"), ("b", "c"), ("ab", "c"), ("x", "y"), ("a", "bc")]
    refused(sentencepiece(apart), "no scores")
    # "aaa" begins as it ends
    refused(sentencepiece([("a", "a"), ("a", "aa"), ("aa", "a")]), "overlaps itself")


def byte_level(pre: Any, normalizer: Any = None, **options: Any) -> Any:
    letters = {letter: number for number, letter in enumerate(byte_letters().values())}
    inner = Tokenizer(BPE(vocab=letters, merges=[], **options))
    inner.pre_tokenizer = pre
    if normalizer is not None:
        inner.normalizer = normalizer
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=inner)


def cut(regex: str) -> Any:
    after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), after])


# as published in the tokenizer.json of the two families, and as quoted in llama.cpp's source
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_rules_for_words_are_recognised_by_what_they_say() -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert read_vocabulary(byte_level(gpt2), 256).pre == "gpt-2"
    qwen = byte_level(cut(QWEN2), normalizers.NFC())
    assert read_vocabulary(qwen, 256).pre == "qwen2"
    llama = byte_level(cut(LLAMA3), ignore_merges=True)
    assert read_vocabulary(llama, 256).pre == "llama-bpe"


def test_unknown_rules_and_other_kinds_are_refused() -> None:
    prefixed = pre_tokenizers.ByteLevel(add_prefix_space=True)
    refused = [
        byte_level(prefixed),
        byte_level(cut(QWEN2)),
        byte_level(cut(LLAMA3)),
        byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFKC()),
    ]
    for tokenizer in refused:
        with pytest.raises(UnsupportedModel, match="none of gpt-2, smollm, qwen2, llama-bpe"):
            read_vocabulary(tokenizer, 256)
    make: Any = PreTrainedTokenizerFast
    words = make(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UnsupportedModel, match="no BPE"):
        read_vocabulary(words, 4)
    whole: Any = object()
    with pytest.raises(UnsupportedModel, match="library tokenizers"):
        read_vocabulary(whole, 4)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UnsupportedModel, match="embeds 16"):
        read_vocabulary(byte_level(gpt2), 16)
