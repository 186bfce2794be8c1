"""A tokenizer as llama.cpp keeps it, only where llama.cpp cuts text into the same tokens.

Two kinds are known. Byte-level BPE has merges, and one of llama.cpp's own rules for cutting text
into words first, which is recognised by what the tokenizer says, not by trying it out.
SentencePiece BPE (a space is a letter, unknown letters are bytes) has a score for each token and no
merges: the two agree where every way to cut a token in two is a merge, the merges of a token stand
together, and no token overlaps itself; all of it is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_LETTERS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
_BYTES = {"type": "ByteLevel", "use_regex": True}
_AFTER = {"type": "ByteLevel", "use_regex": False}


def _split(regex: str) -> dict[str, Any]:
    """Return a pre-tokenizer that cuts by a regular expression, then maps bytes to characters."""
    pattern = {"Regex": regex}
    cut = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, _AFTER]}


_DIGITS = {"type": "Digits", "individual_digits": True}
_PRE: Sequence[tuple[str, Any, Any]] = (
    ("gpt-2", None, _BYTES),
    ("smollm", None, {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]}),
    ("qwen2", {"type": "NFC"}, _split(f"{_LETTERS}|\\p{{N}}{_REST}")),
    ("llama-bpe", None, _split(f"{_LETTERS}|\\p{{N}}{{1,3}}{_REST}")),
)
"""llama.cpp's name of each rule, the normaliser and the pre-tokenizer that it stands for."""

_SENTENCEPIECE = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        pre: llama.cpp's name of the rule that cuts text into words.
        tokens: by number, filled up to the rows of the embedding.
        types: llama.cpp's kind of each token.
        scores: of each token, for SentencePiece; larger is merged first.
        merges: pairs in order of rank, for byte-level BPE.
        bos: the token that a text begins with, if there is one.
        eos: the token that ends a text.
        unk: the token for what is unknown.
        pad: the token that fills up.
        space_prefix: whether a space is put before a text.
        chat_template: the model's own, as Jinja.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    space_prefix: bool = False
    chat_template: str | None = None


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Read a tokenizer as it was loaded, which need not be what its folder's file says.

    Args:
        tokenizer: the base model's, of the library tokenizers.
        rows: of the base's embedding; unused numbers are filled up.

    Raises:
        UnsupportedModel: if llama.cpp would cut text into other tokens.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        _refuse("it is not of the library tokenizers")
    parsed = json.loads(backend.to_str())
    model = parsed["model"]
    if model.get("type") != "BPE":
        _refuse("it is no BPE")
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokens, types = _tokens(model["vocab"], parsed.get("added_tokens") or (), rows)
    template = getattr(tokenizer, "chat_template", None)
    shared: dict[str, Any] = {
        **{key: getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "unk", "pad")},
        "tokens": tokens,
        "chat_template": template if isinstance(template, str) else None,
    }
    if parsed.get("normalizer") == _SENTENCEPIECE and parsed.get("pre_tokenizer") is None:
        scores = _scores(model, merges, tokens)
        kinds = _sentencepiece_types(model, tokens, types)
        return Vocabulary(
            model="llama", pre="default", types=kinds, scores=scores, space_prefix=True, **shared
        )
    pre = _pre(parsed, ignore_merges=bool(model.get("ignore_merges")))
    written = tuple(" ".join(pair) for pair in merges)
    return Vocabulary(model="gpt2", pre=pre, types=types, merges=written, **shared)


def _pre(parsed: Mapping[str, Any], *, ignore_merges: bool) -> str:
    """Return llama.cpp's name of the rule that a tokenizer follows before its merges."""
    for name, normalizer, pre_tokenizer in _PRE:
        if (
            parsed.get("normalizer") == normalizer
            and _essence(parsed.get("pre_tokenizer")) == pre_tokenizer
            and ignore_merges == (name == "llama-bpe")
        ):
            return name
    known = ", ".join(name for name, _, _ in _PRE)
    return _refuse(f"its rule for words is none of {known}, and no SentencePiece")


def _essence(step: object) -> object:
    """Return a pre-tokenizer without what changes no token."""
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Sequence":
        steps = step.get("pretokenizers") or ()
        return {"type": "Sequence", "pretokenizers": [_essence(inner) for inner in steps]}
    if step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
        return {"type": "ByteLevel", "use_regex": step.get("use_regex", True)}
    return step


def _tokens(
    vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]], rows: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return text and kind of every token by number."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    every = [(token, number, NORMAL) for token, number in vocabulary.items()]
    every += [
        (str(entry["content"]), entry["id"], CONTROL if entry.get("special") else USER_DEFINED)
        for entry in added
    ]
    for token, number, kind in every:
        if not 0 <= number < rows:
            _refuse(f"a token has number {number}, the model embeds {rows}")
        tokens[number], types[number] = token, kind
    if len(set(tokens)) != rows:
        _refuse("a token is there twice")
    return tuple(tokens), tuple(types)


def _scores(
    model: Mapping[str, Any], merges: Sequence[tuple[str, ...]], tokens: Sequence[str]
) -> tuple[float, ...]:
    """Return scores under which llama.cpp merges in the order of the merges, if there are any."""
    if not model.get("byte_fallback") or model.get("ignore_merges"):
        _refuse("it is SentencePiece without bytes for unknown characters")
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    known, pairs = set(model["vocab"]), set(merges)
    for token, found in ranks.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        whole = all((a, b) in pairs for a, b in cuts if a in known and b in known)
        together = all(later == rank + 1 for rank, later in pairwise(found))
        if not (token in known and whole and together):
            _refuse("its merges are no scores of tokens")
        if len(found) > 1 and any(token.startswith(token[at:]) for at in range(1, len(token))):
            _refuse("a token with several merges overlaps itself")
    for token in known - set(ranks):
        if any(token[:at] in known and token[at:] in known for at in range(1, len(token))):
            _refuse("a token could be merged and has no merge")
    return tuple(-float(ranks[token][0]) if token in ranks else -1e6 for token in tokens)


def _sentencepiece_types(
    model: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> tuple[int, ...]:
    """Mark the unknown token and the 256 bytes."""
    names = {f"<0x{byte:02X}>" for byte in range(256)}
    if not names <= set(tokens):
        _refuse("it lacks tokens for single bytes")
    unknown = model.get("unk_token")
    return tuple(
        BYTE if token in names else UNKNOWN if token == unknown else kind
        for token, kind in zip(tokens, types, strict=True)
    )


def _refuse(why: str) -> NoReturn:
    """Raise the error of a tokenizer that llama.cpp lacks."""
    msg = f"The tokenizer cannot be written as GGUF: {why}."
    raise UnsupportedModel(msg, hint="The adapter alone needs none: leave --base-type out.")
