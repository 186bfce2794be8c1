"""A client's own adapter starts at the shared one and learns from its client alone."""

from __future__ import annotations

import numpy as np
import pytest

from client.evaluation import evaluate
from client.personal import personal_vector
from client.training import TrainSettings, train_plain
from shared.errors import NoUsableText
from tests.client.conftest import MakeAdapted, make_examples

SETTINGS = TrainSettings(local_steps=4, batch_size=4, learning_rate=0.3)


def test_own_steps_are_plain_steps_from_the_shared_adapter(adapted: MakeAdapted) -> None:
    """Oracle: plain training of a second model that was loaded with the shared factors."""
    model, other = adapted(kinds="B"), adapted(kinds="B")
    rng = np.random.default_rng(3)
    shared = (0.1 * rng.standard_normal(model.spec.size("B"))).astype(np.float32)
    examples = make_examples(6, seed=1)
    own = personal_vector(model, shared, examples, SETTINGS, rng=np.random.default_rng(4))
    other.load_vector(shared, "B")
    before = evaluate(other, examples, batch_size=8).loss
    train_plain(other, examples, SETTINGS, rng=np.random.default_rng(4))
    assert np.array_equal(own, other.read_vector("B"))
    assert evaluate(other, examples, batch_size=8).loss < before


def test_a_client_without_text_has_none(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    shared = np.zeros(model.spec.size("B"), dtype=np.float32)
    with pytest.raises(NoUsableText):
        personal_vector(model, shared, [], SETTINGS, rng=np.random.default_rng(0))
