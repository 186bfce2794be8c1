"""How the next token is chosen; oracle: the softmax written out."""

from __future__ import annotations

import numpy as np
import pytest

from client.answering.engine import Draws, with_begin
from shared.errors import AdapterCorrupt, InvalidValue


def test_draws_have_the_probabilities_of_the_softmax_of_the_likeliest() -> None:
    logits = np.array([0.0, 2.0, 1.0, -3.0, 1.5], dtype=np.float32)
    draws = Draws.of(0.7, 3, 5)
    count = 20_000
    found = np.bincount([draws.choose(logits) for _ in range(count)], minlength=5) / count
    weights = np.where(logits >= 1.0, np.exp(logits / 0.7), 0.0)
    expected = weights / weights.sum()
    # Six standard errors: a false alarm has a chance below 1e-8.
    assert np.abs(found - expected).max() < 6 * np.sqrt(0.25 / count)
    assert found[0] == found[3] == 0


def test_without_temperature_or_with_one_candidate_the_first_likeliest_is_taken() -> None:
    logits = np.array([1.0, 3.0, 3.0], dtype=np.float32)
    assert {Draws.of(0.0, 9, s).choose(logits) for s in range(5)} == {1}
    assert {Draws.of(9.0, 1, s).choose(logits) for s in range(5)} == {1}
    assert Draws.of(0.0, 1, 1).choose(np.array([-np.inf, 0.0], dtype=np.float32)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(AdapterCorrupt):
        Draws.of(0.0, 1, 1).choose(np.array([0.0, bad], dtype=np.float32))


def test_a_prompt_begins_with_what_begins_a_text_once() -> None:
    assert with_begin([5, 6], 1, 2) == [1, 5, 6] == with_begin([1, 5, 6], 1, 2)
    assert with_begin([5], None, 2) == [5]
    assert with_begin([], None, 2) == [2]
    with pytest.raises(InvalidValue):
        with_begin([], None, None)
