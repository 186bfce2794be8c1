"""A statistical tagger of names, places, addresses and the like: a linear-chain model on words.

Patterns cannot find a name. This tagger weighs what a word looks like, whether it is an ordinary
word, a known name or a place, and what stands around it, and picks the likeliest sequence of tags
(Viterbi). Its weights are trained on sentences of this project's own making by
``simulations/auditing/taggertraining.py`` and are a JSON file beside this module: nothing is
downloaded, and nothing but the text itself is looked at.

The model is the structured perceptron of Collins, "Discriminative Training Methods for Hidden
Markov Models" (2002), with averaged weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.redaction.spans import Span
from client.redaction.wordlists import place_words, places, word_set
from shared.errors import ModelError

WEIGHTS = Path(__file__).with_name("tagger.json")
OUTSIDE = "O"
_WORD = re.compile(r"\n+|[^\W\d_]+|\d+|[^\w\s]|_")
_LISTS = {
    "given": "GIVEN",
    "family": "FAMILY",
    "people": "DEMONYMS",
    "calendar": "MONTHS",
    "title": "TITLES",
    "street": "STREETS",
    "company": "COMPANIES",
    "ordinary": "COMMON",
}
_LONGEST_PLACE = 4

MOST_SCORE = 0.3
"""A finding with a form that was checked goes before one of the tagger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word, number or mark of a text.

    Args:
        text: as it stands there.
        start: index of its first character.
        end: index after its last.
        kinds: the lists in which it stands.
        known: its lower-case form where the tagger knows the word, else the empty string.
    """

    text: str
    start: int
    end: int
    kinds: frozenset[str]
    known: str


def split(
    text: str, vocabulary: Collection[str], *, unknown: Collection[str] = ()
) -> tuple[Word, ...]:
    """Split a text into words.

    Args:
        text: any text.
        vocabulary: lower-case words that are known as themselves.
        unknown: lower-case words to take for unknown whatever the lists say (for training).
    """
    matches = list(_WORD.finditer(text))
    lowered = [match.group().lower() for match in matches]
    located = _located(lowered)
    words = []
    for match, low, placed in zip(matches, lowered, located, strict=True):
        hidden = low in unknown
        kinds = {kind for kind, name in _LISTS.items() if not hidden and low in word_set(name)}
        if not hidden:
            kinds |= placed
        words.append(
            Word(
                text=match.group(),
                start=match.start(),
                end=match.end(),
                kinds=frozenset(kinds),
                known=low if low in vocabulary and not hidden else "",
            )
        )
    return tuple(words)


def _located(lowered: Sequence[str]) -> list[set[str]]:
    """Return, for each word, whether it is part of a known place."""
    found: list[set[str]] = [{"placeword"} if word in place_words() else set() for word in lowered]
    for size in range(_LONGEST_PLACE, 0, -1):
        for start in range(len(lowered) - size + 1):
            if " ".join(lowered[start : start + size]) in places():
                for index in range(start, start + size):
                    found[index].add("place")
    return found


def shape(text: str) -> str:
    """Return what a word looks like: its case, or how many digits it has."""
    if text.isdigit():
        return f"9{len(text)}" if len(text) <= 5 else "9+"
    if "\n" in text:
        return "newline"
    if not text[0].isalpha():
        return text[0]
    if text.islower():
        return "x"
    if text.isupper():
        return "X" if len(text) == 1 else "XX"
    return "Xx" if text[0].isupper() else "xX"


def features(words: Sequence[Word]) -> list[list[str]]:
    """Return the names of what is seen at each word."""
    around = [_seen(word) for word in words]
    edge = ["edge"]
    found = []
    for index, word in enumerate(words):
        here = around[index]
        before = around[index - 1] if index else edge
        after = around[index + 1] if index + 1 < len(words) else edge
        far_before = around[index - 2] if index > 1 else edge
        far_after = around[index + 2] if index + 2 < len(words) else edge
        low = word.text.lower()
        own = [f"0{name}" for name in here]
        own += [f"p{low[:3]}", f"s{low[-3:]}", f"t{low[-2:]}"]
        if not word.text.isascii():
            own.append("foreign")
        own += [f"-{name}" for name in before]
        own += [f"+{name}" for name in after]
        own += [f"={name}" for name in far_before[:2]]
        own += [f"#{name}" for name in far_after[:2]]
        own += [f"{before[0]}|{here[0]}", f"{here[0]}|{after[0]}"]
        own += [f"{before[0]}|{here[0]}|{after[0]}", f"{before[-1]}|{here[-1]}|{after[-1]}"]
        if index == 0 or words[index - 1].text[0] in ".!?\n:>":
            own.append(f"first|{here[0]}")
            own.append(f"first|{here[-1]}")
        found.append(own)
    return found


def _seen(word: Word) -> list[str]:
    """Return what is seen of one word: itself or its shape, its shape, its lists, both together."""
    form = shape(word.text)
    lists = "".join(sorted(kind[0:2] for kind in word.kinds))
    return [
        f"w{word.known}" if word.known else f"u{form}",
        f"f{form}",
        *(f"k{kind}" for kind in sorted(word.kinds)),
        f"c{form}:{lists}",
    ]


class Tagger:
    """The trained model.

    Args:
        tags: the tags, ``O`` first, then ``B-X`` and ``I-X``.
        vocabulary: lower-case words known as themselves.
        weights: for each feature its weight for each tag.
        steps: shape ``(1 + tags, tags)``; weight of each tag after each, the last row for a start.
    """

    def __init__(
        self,
        *,
        tags: Sequence[str],
        vocabulary: Collection[str],
        weights: Mapping[str, NDArray[np.float32]],
        steps: NDArray[np.float32],
    ) -> None:
        self.tags = tuple(tags)
        self.vocabulary = frozenset(vocabulary)
        self._weights = weights
        self._steps = steps + forbidden(self.tags)

    def find(self, text: str) -> list[Span]:
        """Return the entities of a text, in order, none overlapping another.

        The score is the odds of the tag at the entity's least certain word, squashed into
        (0, :data:`MOST_SCORE`); it orders overlapping findings and is no probability.
        """
        words = split(text, self.vocabulary)
        if not words:
            return []
        scores = self.scores(features(words))
        return _spans(words, [self.tags[index] for index in best_path(scores, self._steps)], scores)

    def scores(self, seen: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Return the score of each tag at each word, shape ``(words, tags)``."""
        found = np.zeros((len(seen), len(self.tags)), dtype=np.float32)
        for row, names in zip(found, seen, strict=True):
            for name in names:
                weight = self._weights.get(name)
                if weight is not None:
                    row += weight
        return found


def best_path(scores: NDArray[np.float32], steps: NDArray[np.float32]) -> list[int]:
    """Return the sequence of tags with the highest sum of scores and steps (Viterbi).

    Args:
        scores: shape ``(words, tags)``, at least one word.
        steps: shape ``(1 + tags, tags)``; the last row is for the first word.
    """
    total = scores[0] + steps[-1]
    back = []
    for row in scores[1:]:
        ways = total[:, None] + steps[:-1]
        came = ways.argmax(axis=0)
        back.append(came)
        total = ways[came, np.arange(len(came))] + row
    path = [int(total.argmax())]
    for came in reversed(back):
        path.append(int(came[path[-1]]))
    return path[::-1]


def forbidden(tags: Sequence[str]) -> NDArray[np.float32]:
    """Return minus infinity for every step that is no sequence of entities, else 0.

    ``I-X`` follows only ``B-X`` or ``I-X``.
    """
    rows = (*tags, OUTSIDE)
    bad = np.zeros((len(rows), len(tags)), dtype=np.float32)
    for column, tag in enumerate(tags):
        if tag.startswith("I-"):
            for row, before in enumerate(rows):
                if before[2:] != tag[2:]:
                    bad[row, column] = -np.inf
    return bad


def _spans(words: Sequence[Word], tags: Sequence[str], scores: NDArray[np.float32]) -> list[Span]:
    """Return what a sequence of tags says."""
    found: list[Span] = []
    open_at: int | None = None
    for index, tag in enumerate((*tags, OUTSIDE)):
        if open_at is not None and not tag.startswith("I-"):
            margin = min(_margin(scores[k]) for k in range(open_at, index))
            found.append(
                Span(
                    start=words[open_at].start,
                    end=words[index - 1].end,
                    kind=tags[open_at][2:],
                    score=MOST_SCORE / (1 + math.exp(-margin / 10)),
                )
            )
            open_at = None
        if tag.startswith("B-"):
            open_at = index
    return found


def _margin(row: NDArray[np.float32]) -> float:
    """Return by how much the best tag but ``O`` beats ``O``, within what an exponential bears."""
    return float(np.clip(row[1:].max() - row[0], -100.0, 100.0))


@cache
def load_tagger(path: Path = WEIGHTS) -> Tagger:
    """Read the weights that come with the package.

    Raises:
        ModelError: if the file is missing or is not a tagger.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tags = [str(tag) for tag in data["tags"]]
        scale = float(data["scale"])
        weights = {}
        for name, pairs in data["weights"].items():
            row = np.zeros(len(tags), dtype=np.float32)
            row[pairs[::2]] = np.array(pairs[1::2], dtype=np.float32) / scale
            weights[str(name)] = row
        steps = np.array(data["steps"], dtype=np.float32) / scale
        vocabulary = str(data["vocabulary"]).split()
        if steps.shape != (len(tags) + 1, len(tags)) or tags[0] != OUTSIDE:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        msg = f"{path.name} is missing or is not a tagger."
        raise ModelError(msg, hint="Install fedslm again.") from error
    return Tagger(tags=tags, vocabulary=vocabulary, weights=weights, steps=steps)
