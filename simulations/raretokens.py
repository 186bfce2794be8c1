"""Tokens that text hardly ever holds: canaries of one token each, for any Hugging Face tokenizer.

What one client alone writes is what an adapter most easily gives away (Panda et al., "Privacy
Auditing of Large Language Models", ICLR 2025). Rare tokens are found from public facts alone: the
tokenizer's vocabulary, and how often its tokens occur in the embedded public text. Nobody looks at
private data, so a token may still occur there; the coins are independent of that, and no bound
needs it to be otherwise.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from client.data import Record
from client.tokenization import make_examples
from shared.errors import AuditError, NoUsableText, TokenizerMissing
from simulations.draw import Draw
from simulations.public_text import public_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from simulations.canaryplan import CanaryPlan

MAX_SHARE = 2.5e-4
_DOCUMENTS = 2000
_STREAM = 0
_CHUNK = 4096
_ENDLESS = 1 << 20
_MOST_COUNTED = 4
_COUNTED: dict[str, Counter[int]] = {}
"""By the digest of a tokenizer's own file: a sweep of many runs opens the same one each time."""


def open_tokenizer(base: str, *, revision: str | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model alone, without its weights.

    Args:
        base: a transformers folder or a hub id.
        revision: hub revision; a folder has none.

    Raises:
        TokenizerMissing: if there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        msg = f"The tokenizer of the base model cannot be loaded ({type(error).__name__})."
        raise TokenizerMissing(msg, hint="Check model.base; canaries need it.") from error
    return tokenizer


def rare_tokens(tokenizer: PreTrainedTokenizerBase, *, wanted: int) -> tuple[str, ...]:
    """Choose tokens that hardly ever occur in the embedded public text.

    A token counts if it is neither special nor added, reads as printable text of two characters or
    more without white space at its ends, is one token again when that text is tokenised alone, and
    makes up at most :data:`MAX_SHARE` of the tokens of 2,000 public documents. Tokens that occur
    there at all come first: one that no text ever held may never have been trained, and a model
    cannot tell two such tokens apart.

    Args:
        tokenizer: of the base model: byte-level, sentencepiece or WordPiece.
        wanted: how many at most.

    Returns:
        The texts of different tokens, in an order that depends on the vocabulary alone. Fewer than
        ``wanted`` if the vocabulary has no more.
    """
    counts = _counts(tokenizer)
    most = MAX_SHARE * counts.total()
    left_out = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    order = Draw(_STREAM, "rare-tokens").sample(range(len(tokenizer)), len(tokenizer))
    usable = [token for token in order if counts[token] <= most and token not in left_out]
    usable.sort(key=lambda token: counts[token] == 0)  # stable: the order stays random within
    found: list[str] = []
    for start in range(0, len(usable), _CHUNK):
        if len(found) >= wanted:
            break
        found += _round_trips(tokenizer, usable[start : start + _CHUNK])
    return tuple(found[:wanted])


def require_tokens(found: Sequence[str], needed: int) -> None:
    """Refuse a vocabulary with too few rare tokens for the canaries that were asked for.

    Raises:
        AuditError: with both numbers.
    """
    if not len(found) >= needed:
        msg = (
            f"audit.canaries={needed} of kind rare-token, but the base model's vocabulary has "
            f"{len(found)} tokens that are rare enough."
        )
        hint = 'Lower audit.canaries, or set audit.kinds to ["secret"].'
        raise AuditError(msg, hint=hint)


def require_readable(
    plan: CanaryPlan, tokenizer: PreTrainedTokenizerBase, *, max_length: int, template: str
) -> None:
    """Refuse canaries that training would cut, or whose rare token the template changes.

    Args:
        plan: whose canaries are to be planted.
        tokenizer: of the base model.
        max_length: the scenario's ``data.max_length``.
        template: the scenario's ``data.template``.

    Raises:
        AuditError: if a canary does not fit whole, or a rare token is not one token in its place.
    """
    cut = changed = 0
    for canary in plan.canaries:
        record = Record(prompt=canary.prompt, response=canary.text)
        try:
            (whole,) = make_examples([record], tokenizer, max_length=_ENDLESS, template=template)
        except NoUsableText:
            changed += 1
            continue
        cut += whole.ids.size > max_length
        first = next(label for label in whole.labels if label >= 0)
        if canary.kind == "rare-token":
            changed += [int(first)] != _encode(tokenizer, [canary.text])[0]
    if cut or changed:
        msg = (
            f"Of {len(plan.canaries)} canaries {cut} do not fit data.max_length={max_length}, and "
            f"{changed} are changed by data.template."
        )
        raise AuditError(msg, hint="Raise data.max_length, or set audit.canaries to 0.")


def _round_trips(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """Return the texts of those tokens that are themselves again when tokenised."""
    texts = [_decoded(tokenizer, token) for token in tokens]
    again = _encode(tokenizer, texts)
    return [
        text
        for token, text, ids in zip(tokens, texts, again, strict=True)
        if ids == [token] and _telling(text)
    ]


def _decoded(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of one token."""
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _telling(text: str) -> bool:
    """Tell whether a text may be a secret; single signs are common outside public text."""
    return len(text) > 1 and text == text.strip() and text.isprintable() and "\ufffd" not in text


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, each alone."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return [[int(token) for token in ids] for ids in encoded["input_ids"]]


def _counts(tokenizer: PreTrainedTokenizerBase) -> Counter[int]:
    """Return how often tokens occur in public documents; counted once for each tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _count(tokenizer)
    known = hashlib.sha256(backend.to_str().encode()).hexdigest()
    if known not in _COUNTED:
        if len(_COUNTED) >= _MOST_COUNTED:
            _COUNTED.pop(next(iter(_COUNTED)), None)
        _COUNTED[known] = _count(tokenizer)
    return _COUNTED[known]


def _count(tokenizer: PreTrainedTokenizerBase) -> Counter[int]:
    """Count the tokens of public documents."""
    return Counter(token for ids in _encode(tokenizer, _public()) for token in ids)


@lru_cache(maxsize=1)
def _public() -> tuple[str, ...]:
    """Return the public documents that tokens are looked up in."""
    return tuple(islice(public_documents(_STREAM), _DOCUMENTS))
