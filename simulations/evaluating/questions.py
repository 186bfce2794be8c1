"""Questions with choices, as every local task has them, and the built-in ones.

A question is answered by the choice that the model finds likeliest after the context. What a
question says never gets into a log, an error or a result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from shared.seeding import data_rng, derive_seed
from simulations.corpora import private_records
from simulations.public_text import public_documents

_PAIRS = 400
_LEAST_WORDS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        context: what comes before; "" for whole sentences.
        choices: two or more, each with the space that it begins with.
        gold: which is right.
        group: what the result is broken down by; "" for nothing.
    """

    context: str
    choices: tuple[str, ...]
    gold: int
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Questions of one kind.

    Attributes:
        name: of the task.
        measure: what the score is called.
        about: where its questions come from, without a path.
        questions: at least one.
        digest: SHA-256 of the questions.
        normalised: also score by log-likelihood per character, for choices that differ in length.
        neutral: the score of a model without preference, if that is what is best; None where more
            is better.
    """

    name: str
    measure: str
    about: str
    questions: tuple[Question, ...]
    digest: str
    normalised: bool = False
    neutral: float | None = None


def make_task(
    name: str,
    questions: Iterable[Question],
    *,
    about: str,
    measure: str = "accuracy",
    normalised: bool = False,
    neutral: float | None = None,
) -> Task:
    """Return a task with the digest of its questions."""
    found = tuple(questions)
    digest = hashlib.sha256()
    for question in found:
        digest.update(json.dumps(asdict(question), sort_keys=True).encode() + b"\n")
    return Task(
        name=name,
        measure=measure,
        about=about,
        questions=found,
        digest=digest.hexdigest(),
        normalised=normalised,
        neutral=neutral,
    )


def chosen(task: Task, *, limit: int | None, seed: int) -> tuple[Question, ...]:
    """Return the task's questions, or a seeded draw of some, in their order."""
    if limit is None or limit >= len(task.questions):
        return task.questions
    rng = data_rng(seed, "eval-questions", task.name)
    drawn = rng.choice(len(task.questions), size=limit, replace=False)
    return tuple(task.questions[index] for index in sorted(drawn))


def word_order(seed: int) -> Task:
    """Return pairs of a public sentence and the same with two neighbouring words swapped.

    The documents are generated under a stream of their own, which no model was trained on.
    """
    return make_task("word-order", _swapped(seed), about="generated public sentences")


def clinic_endings(seed: int) -> Task:
    """Return beginnings of embedded clinics' notes, each with its ending and another clinic's.

    The clinics have numbers that no scenario of fedslm uses, so that no adapter saw their notes.
    """
    notes = _notes(seed)
    rng = data_rng(seed, "eval-endings")
    found = []
    for index, (beginning, ending) in enumerate(notes):
        other = notes[(index + 1) % len(notes)][1]
        gold = int(rng.integers(2))
        choices = (ending, other) if gold == 0 else (other, ending)
        found.append(Question(context=beginning, choices=choices, gold=gold))
    about = "notes of embedded clinics"
    return make_task("clinic-endings", found, about=about, normalised=True)


def _swapped(seed: int) -> Iterator[Question]:
    """Yield pairs of sentences, the right one first or second by a coin."""
    rng = data_rng(seed, "eval-word-order")
    stream = public_documents(derive_seed(seed, "eval", "word-order"))
    for sentence in islice(_sentences(stream), _PAIRS):
        words = sentence.split(" ")
        # The ends stay, whose capital and full stop would give the order away.
        places = [i for i in range(1, len(words) - 2) if words[i] != words[i + 1]]
        place = places[int(rng.integers(len(places)))]
        swapped = [*words]
        swapped[place], swapped[place + 1] = words[place + 1], words[place]
        gold = int(rng.integers(2))
        pair = (sentence, " ".join(swapped))
        yield Question(context="", choices=pair if gold == 0 else pair[::-1], gold=gold)


def _sentences(documents: Iterator[str]) -> Iterator[str]:
    """Yield the first sentence of each document that has enough words in one line."""
    for document in documents:
        sentence = document.split("\n")[0].split(". ")[0].rstrip(".") + "."
        if len(sentence.split(" ")) >= _LEAST_WORDS:
            yield sentence


def _notes(seed: int) -> Sequence[tuple[str, str]]:
    """Return notes of clinics far beyond any scenario's, cut in two between words."""
    found = []
    for client in range(1 << 40, (1 << 40) + _PAIRS):
        note = private_records(client, seed=derive_seed(seed, "eval") % (1 << 63), records=1)[0]
        words = note.split(" ")
        half = len(words) // 2
        found.append((" ".join(words[:half]), " " + " ".join(words[half:])))
    return found
