"""Reading the middle of a record: the tokens of a text and no others, end mark or not."""

from __future__ import annotations

import numpy as np
import pytest

from server.audit.inline import read_inline
from server.audit.protocol import Floats
from server.audit.target import Passage, Reading
from tests.server.audit.babbler import Babbler, tokens

TEXTS = [("Pt Ana 41f tel", " 555 0101"), ("Pt Bo 7m addr", " 12 Elm St"), ("", "Cy alone")]


def expected(model: Babbler, before: str, text: str) -> Floats:
    """Log-probabilities by the chain rule, word by word."""
    words, found = tokens(before), []
    for word in tokens(text):
        found.append(float(np.log(model.row(words, adapter=True)[model.words[word]])))
        words.append(word)
    return np.array(found)


def model(*, end: bool, longest: int = 100) -> Babbler:
    whole = [before + text for before, text in TEXTS]
    return Babbler(whole, whole[:1], end=end, longest=longest)


@pytest.mark.parametrize("end", [False, True])
def test_a_text_is_read_without_its_beginning_and_without_the_end_mark(end: bool) -> None:
    babbler = model(end=end)
    found = read_inline(babbler, TEXTS, adapter=True)
    for (before, text), reading in zip(TEXTS, found, strict=True):
        assert reading is not None
        assert reading.log_probability == pytest.approx(expected(babbler, before, text))
        for column in (reading.expected, reading.spread, reading.rank, reading.log_mass):
            assert column.shape == (len(tokens(text)),)


def test_a_text_that_is_cut_off_is_not_read() -> None:
    found = read_inline(model(end=True, longest=4), TEXTS[:1], adapter=True)
    assert found == [None]


def test_nothing_is_read_for_nothing() -> None:
    assert read_inline(model(end=True), [], adapter=True) == []


def test_a_beginning_whose_last_token_changes_is_not_read() -> None:
    """``St`` and ``Stone`` are different words: the text must start where a token starts."""
    babbler = Babbler(["Pt Bo lives 12 Elm St", "Pt Bo lives 12 Elm Stone road", "one two"], seed=2)
    texts = [("Pt Bo lives 12 Elm St", "one road"), ("Pt Bo lives", " 12 Elm")]
    found = read_inline(babbler, texts, adapter=True)
    assert found[0] is None
    assert isinstance(found[1], Reading)


def test_small_differences_between_batches_are_no_end_mark() -> None:
    class Noisy(Babbler):
        def read(self, passages: list[Passage], *, adapter: bool) -> list[Reading]:  # type: ignore[override]
            rng = np.random.default_rng(0)
            readings = super().read(passages, adapter=adapter)
            for reading in readings:
                reading.log_probability[:] += rng.uniform(-0.01, 0.01, reading.rank.size)
            return readings

    babbler = Noisy([before + text for before, text in TEXTS])
    found = read_inline(babbler, TEXTS, adapter=True)
    assert [None if r is None else r.rank.size for r in found] == [2, 3, 2]
