"""Train the tagger of the redactor; ``python -m simulations.auditing.taggertraining`` writes it.

The weights are those of a structured perceptron (Collins 2002), averaged over all steps, on the
sentences of :mod:`simulations.auditing.taggersentences`. Words are taken for unknown at random, or
the tagger would know every name that it will never see again. The same seed and the same tables of
places (those of ``phonenumbers``, whose version is written down) give the same file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.redaction.spans import Span
from client.redaction.tagger import (
    OUTSIDE,
    WEIGHTS,
    Word,
    best_path,
    features,
    forbidden,
    split,
)
from client.redaction.wordlists import word_set
from shared.files import write_text
from simulations.auditing.taggerpatterns import PATTERNS, PLAIN
from simulations.auditing.taggersentences import Sentences

KINDS = (
    "PERSON GPE STREET_ADDRESS ORGANIZATION NRP TITLE DATE_TIME AGE ZIP_CODE PHONE_NUMBER "
    "CREDIT_CARD US_DRIVER_LICENSE"
).split()
TAGS = (OUTSIDE, *(f"{mark}-{kind}" for kind in KINDS for mark in "BI"))
SEED = 20_240_601
SENTENCES = 9_000
PASSES = 4
HIDDEN_NAME = 0.35
"""Chance that a word of an entity is taken for unknown."""
HIDDEN_WORD = 0.12
"""Chance that any other word is; it then may look like a name where it starts a sentence."""
SCALE = 64
LEAST = 24
"""Weights of less than LEAST / SCALE are dropped."""

Array = NDArray[np.float64]


def vocabulary() -> list[str]:
    """Return the words that the tagger knows as themselves."""
    own = re.sub(r"\{[A-Z_]+\}|\\n", " ", PATTERNS + PLAIN).lower()
    words = set(re.findall(r"[^\W\d_]+", own)) | set(re.findall(r"[^\w\s]", own))
    for name in ("COMMON", "MONTHS", "TITLES", "STREETS", "COMPANIES"):
        words |= word_set(name)
    return sorted(words)


def tags_of(words: Sequence[Word], spans: Sequence[Span]) -> list[int]:
    """Return the tag of each word, as its index in :data:`TAGS`."""
    found = []
    for word in words:
        inside = [span for span in spans if span.start <= word.start and word.end <= span.end]
        if not inside:
            found.append(0)
            continue
        mark = "B" if word.start == inside[0].start else "I"
        found.append(TAGS.index(f"{mark}-{inside[0].kind}"))
    return found


def examples(seed: int, count: int) -> list[tuple[list[list[str]], list[int]]]:
    """Return the features and tags of made-up sentences."""
    sentences, random = Sentences(seed), np.random.default_rng(seed + 1)
    known = frozenset(vocabulary())
    found = []
    for _ in range(count):
        sentence = sentences.draw()
        plain = split(sentence.text, known)
        tags = tags_of(plain, sentence.spans)
        hidden = {
            word.text.lower()
            for word, tag in zip(plain, tags, strict=True)
            if word.text.isalpha()
            and random.random() < (HIDDEN_NAME if TAGS[tag][2:] in _NAMES else HIDDEN_WORD)
        }
        found.append((features(split(sentence.text, known, unknown=hidden)), tags))
    return found


_NAMES = {"PERSON", "GPE", "STREET_ADDRESS", "ORGANIZATION"}


def train(*, seed: int = SEED, count: int = SENTENCES, passes: int = PASSES) -> dict[str, object]:
    """Return the trained tagger as it is stored.

    Args:
        seed: names the sentences and their order.
        count: how many sentences.
        passes: how often each is seen.
    """
    data = examples(seed, count)
    often = Counter(name for seen, _ in data for names in seen for name in names)
    index = {name: k for k, name in enumerate(sorted(n for n, times in often.items() if times > 2))}
    rows = [
        ([np.array([index[n] for n in names if n in index]) for names in seen], np.array(tags))
        for seen, tags in data
    ]
    weights, steps = _perceptron(rows, len(index), np.random.default_rng(seed + 2), passes)
    return _stored(sorted(index, key=index.__getitem__), weights, steps)


def _perceptron(
    rows: Sequence[tuple[list[NDArray[np.int64]], NDArray[np.int64]]],
    size: int,
    random: np.random.Generator,
    passes: int,
) -> tuple[Array, Array]:
    """Return averaged weights, shapes ``(size, tags)`` and ``(1 + tags, tags)``."""
    tags = len(TAGS)
    weights, late = np.zeros((size, tags)), np.zeros((size, tags))
    steps, late_steps = np.zeros((tags + 1, tags)), np.zeros((tags + 1, tags))
    bad = forbidden(TAGS)
    clock = 1
    for _ in range(passes):
        for number in random.permutation(len(rows)):
            seen, truth = rows[number]
            scores = np.array([weights[names].sum(axis=0) for names in seen], dtype=np.float32)
            guess = np.array(best_path(scores, (steps + bad).astype(np.float32)))
            if not np.array_equal(guess, truth):
                for k in np.flatnonzero(guess != truth):
                    for tag, sign in ((truth[k], 1.0), (guess[k], -1.0)):
                        np.add.at(weights, (seen[k], tag), sign)
                        np.add.at(late, (seen[k], tag), sign * clock)
                for path, sign in ((truth, 1.0), (guess, -1.0)):
                    came = np.concatenate([[tags], path[:-1]])
                    np.add.at(steps, (came, path), sign)
                    np.add.at(late_steps, (came, path), sign * clock)
            clock += 1
    return weights - late / clock, steps - late_steps / clock


def _stored(names: Sequence[str], weights: Array, steps: Array) -> dict[str, object]:
    """Return the stored form: whole numbers, small ones dropped."""
    whole = np.rint(weights * SCALE).astype(int)
    kept: dict[str, list[int]] = {}
    for name, row in zip(names, whole, strict=True):
        pairs = [int(v) for k in np.flatnonzero(np.abs(row) >= LEAST) for v in (k, row[k])]
        if pairs:
            kept[name] = pairs
    return {
        "about": "Averaged perceptron weights of client/redaction/tagger.py, times scale.",
        "phonenumbers": version("phonenumbers"),
        "scale": SCALE,
        "tags": list(TAGS),
        "vocabulary": " ".join(vocabulary()),
        "steps": np.rint(steps * SCALE).astype(int).tolist(),
        "weights": kept,
    }


def dumped(model: dict[str, object]) -> str:
    """Return the text of the file: one feature a line would be half a megabyte more."""
    return json.dumps(model, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n"


def main(path: Path = WEIGHTS) -> None:
    """Train and write the weights."""
    write_text(path, dumped(train()))


if __name__ == "__main__":
    main()
