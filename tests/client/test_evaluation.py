"""Losses against the library's own, on one unpadded sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.evaluation import evaluate, sequence_losses
from client.examples import IGNORED, Example
from shared.errors import InvalidValue, NoUsableText
from tests.client.conftest import MakeAdapted, make_examples


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_losses_equal_the_librarys(adapted: MakeAdapted, family: str, batch_size: int) -> None:
    model = adapted(family)
    examples = make_examples(7)
    means, counts = [], []
    with torch.no_grad():
        for example in examples:
            ids = torch.from_numpy(example.ids)[None]
            labels = torch.from_numpy(example.labels)[None]
            means.append(float(model.peft_model(input_ids=ids, labels=labels).loss))
            counts.append(int((example.labels[1:] != IGNORED).sum()))
    sums = np.array(means) * np.array(counts)
    found = sequence_losses(model, examples, batch_size=batch_size)
    assert found == pytest.approx(sums, rel=1e-5)
    found = sequence_losses(model, examples, batch_size=batch_size, reduction="mean")
    assert found == pytest.approx(means, rel=1e-5)
    result = evaluate(model, examples, batch_size=batch_size)
    assert result.tokens == sum(counts)
    assert result.loss == pytest.approx(sums.sum() / sum(counts), rel=1e-5)


def test_a_disabled_adapter_leaves_the_base(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    examples = make_examples(4)
    start = model.read_vector("AB")
    with_adapter = sequence_losses(model, examples, batch_size=4)
    with model.disabled():
        base = sequence_losses(model, examples, batch_size=4)
    assert np.array_equal(sequence_losses(model, examples, batch_size=4), with_adapter)
    assert not np.allclose(base, with_adapter)
    model.load_vector(np.zeros(model.spec.size("B"), dtype=np.float32), "B")
    assert sequence_losses(model, examples, batch_size=4) == pytest.approx(base, rel=1e-6)
    model.load_vector(start, "AB")
    assert [name for name, _ in model.trainable] == [f.name for f in model.spec.of_kind("B")]
    assert all(parameter.requires_grad for _, parameter in model.trainable)


def test_dropout_is_off_while_evaluating(adapted: MakeAdapted) -> None:
    model = adapted(dropout=0.5)
    examples = make_examples(4)
    losses = [evaluate(model, examples, batch_size=4).loss for _ in range(2)]
    assert losses[0] == losses[1]


def test_nothing_to_predict_is_an_error(adapted: MakeAdapted) -> None:
    model = adapted()
    mute = Example(ids=np.array([5], dtype=np.int64), labels=np.array([5], dtype=np.int64))
    for examples in ([], [mute]):
        with pytest.raises(NoUsableText, match="token to predict"):
            evaluate(model, examples, batch_size=2)
    assert sequence_losses(model, [mute], batch_size=1, reduction="mean").tolist() == [0.0]
    assert sequence_losses(model, [], batch_size=1).shape == (0,)


def test_the_batch_size_is_checked(adapted: MakeAdapted) -> None:
    with pytest.raises(InvalidValue, match="batch_size"):
        evaluate(adapted(), make_examples(1), batch_size=0)
