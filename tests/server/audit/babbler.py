"""A language model of words, small enough to know everything about: it reads, writes, remembers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from server.audit.protocol import Floats
from server.audit.target import TOP_K, Passage, Reading, Target

END = "</s>"


class Babbler(Target):
    """Words are drawn from one fixed distribution, except after what was memorised.

    After two words that a memorised text holds in a row, the word that follows there has
    probability ``strength``. A prompt and its text are joined by a line end, which is a token.

    Args:
        texts: where the vocabulary comes from; each word of a text must be in one of them.
        learned: texts that the adapter memorised, prompts included.
        known: texts that the base model knows as well.
        strength: how firmly.
        end: whether a text is scored up to an end mark, as training does.
        longest: tokens after which a text is cut off.
        seed: draws the distribution of words.
    """

    def __init__(
        self,
        texts: Sequence[str],
        learned: Sequence[str] = (),
        *,
        known: Sequence[str] = (),
        strength: float = 0.9,
        end: bool = False,
        longest: int = 10_000,
        seed: int = 0,
    ) -> None:
        words = sorted({w for text in (*texts, *learned, *known) for w in tokens(text)} - {END})
        self.words = {word: place for place, word in enumerate((*words, "\n", END))}
        self.plain = np.random.default_rng(seed).dirichlet(np.full(len(self.words), 5.0))
        self.memory = {True: _pairs((*learned, *known)), False: _pairs(known)}
        self.strength, self.end, self.longest = strength, end, longest

    def row(self, before: Sequence[str], *, adapter: bool) -> Floats:
        """Probabilities of every word after some words."""
        follows = self.memory[adapter].get(tuple(before[-2:]))
        if follows is None:
            return self.plain
        row = self.plain * (1 - self.strength)
        row[self.words[follows]] += self.strength
        return np.asarray(row)

    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        return [self._read(passage, adapter=adapter) for passage in passages]

    def _read(self, passage: Passage, *, adapter: bool) -> Reading:
        before = [*tokens(passage.prompt), "\n"] if passage.prompt else []
        wanted = [*tokens(passage.text), *([END] if self.end else [])]
        wanted = wanted[: self.longest]
        columns = []
        for word in wanted:
            row = self.row(before, adapter=adapter)
            own, logs = row[self.words[word]], np.log(row)
            mean = float(row @ logs)
            spread = float(np.sqrt(row @ (logs - mean) ** 2))
            mass = float(np.log(np.sort(row)[-TOP_K:].sum()))
            columns.append((np.log(own), mean, spread, np.count_nonzero(row > own), mass))
            before.append(word)
        table = np.array(columns, dtype=np.float64).reshape(-1, 5)
        return Reading(
            log_probability=table[:, 0],
            expected=table[:, 1],
            spread=table[:, 2],
            rank=table[:, 3].astype(np.int64),
            log_mass=table[:, 4],
        )

    def write(
        self,
        prompts: Sequence[str],
        *,
        adapter: bool,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        rng = np.random.default_rng(seed)
        written = []
        names = list(self.words)
        for prompt in prompts:
            before, new = tokens(prompt), []
            for _ in range(max_tokens):
                row = self.row(before, adapter=adapter)
                if temperature == 0:
                    word = names[int(row.argmax())]
                else:
                    top = np.argsort(row)[-TOP_K:]
                    word = names[int(rng.choice(top, p=row[top] / row[top].sum()))]
                if word == END:
                    break
                new.append(word)
                before.append(word)
            written.append("".join(f" {word}" for word in new))
        return written


def tokens(text: str) -> list[str]:
    """The words of a text."""
    return re.findall(r"\S+", text)


def _pairs(texts: Sequence[str]) -> dict[tuple[str, ...], str]:
    """What follows each two words, and each text's first word."""
    return {
        tuple(words[max(0, place - 2) : place]): words[place]
        for words in map(tokens, texts)
        for place in range(1, len(words))
    }
