"""Many clients at once against one client at a time: same batches, same coins, same noise.

The two differ by the order in which float32 sums are added up. TOLERANCE bounds the difference
relative to the length of a client's own change; a client that read another's example, or another's
noise, would be off by about one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.adapter import AdaptedModel
from client.cohort import train_plain_group, train_private_group, train_unprotected_group
from client.cohortbatches import by_length
from client.evaluation import evaluate, evaluate_group
from client.examples import IGNORED, Example
from client.training import (
    TrainSettings,
    train_plain,
    train_private,
    train_unprotected_poisson,
)
from shared.errors import InvalidValue, NoUsableText, UnsupportedModel
from shared.lora import Vector
from shared.privacy.noise import NoiseSource
from tests.client.conftest import MakeAdapted, make_examples

TOLERANCE = 1e-5
SIZES = (5, 1, 9, 4)
SAMPLING: dict[str, Any] = {"sampling_probability": 0.4}
PRIVACY: dict[str, Any] = {"max_grad_norm": 0.3, "noise_multiplier": 0.7, **SAMPLING}


def options(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.2}
    if "local_epochs" not in changes:
        values["local_steps"] = 3
    return TrainSettings(**{**values, **changes})


def ragged(sizes: Sequence[int] = SIZES) -> list[list[Example]]:
    return [make_examples(size, seed=seed) for seed, size in enumerate(sizes)]


def sources(count: int) -> list[NoiseSource]:
    return [NoiseSource.seeded(3, "noise", client) for client in range(count)]


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(client) for client in range(count)]


def one_by_one(
    model: AdaptedModel,
    clients: Sequence[Sequence[Example]],
    settings: TrainSettings,
    *,
    how: str = "plain",
) -> list[Vector]:
    start, found = model.read_vector(model.kinds), []
    for examples, source, rng in zip(
        clients, sources(len(clients)), rngs(len(clients)), strict=True
    ):
        if how == "plain":
            train_plain(model, examples, settings, rng=rng)
        elif how == "private":
            train_private(model, examples, settings, **PRIVACY, source=source)
        else:
            train_unprotected_poisson(model, examples, settings, **SAMPLING, source=source)
        found.append(model.read_vector(model.kinds))
        model.load_vector(start, model.kinds)
    return found


def together(
    model: AdaptedModel,
    clients: Sequence[Sequence[Example]],
    settings: TrainSettings,
    *,
    how: str = "plain",
    tokens: int = 40,
) -> list[Vector]:
    count = len(clients)
    if how == "plain":
        return list(train_plain_group(model, clients, settings, rngs=rngs(count), tokens=tokens))
    if how == "private":
        found, noised = train_private_group(
            model, clients, settings, **PRIVACY, sources=sources(count), tokens=tokens
        )
        assert noised == (settings.local_steps or 4)
        return list(found)
    return list(
        train_unprotected_group(
            model, clients, settings, **SAMPLING, sources=sources(count), tokens=tokens
        )
    )


def require_equal(start: Vector, found: Sequence[Vector], expected: Sequence[Vector]) -> None:
    assert len(found) == len(expected)
    lengths = [float(np.linalg.norm(vector - start)) for vector in expected]
    assert sum(length > 0 for length in lengths) >= len(lengths) / 2
    for one, other, length in zip(found, expected, lengths, strict=True):
        # A client that drew nothing and adds no noise has not moved at all.
        assert float(np.linalg.norm(one - other)) <= TOLERANCE * length


@pytest.mark.parametrize("how", ["plain", "private", "unprotected"])
@pytest.mark.parametrize(
    ("kinds", "quantization"), [("A", "none"), ("B", "none"), ("AB", "none"), ("B", "nf4")]
)
def test_a_group_trains_as_its_clients_do(
    adapted: MakeAdapted, how: str, kinds: str, quantization: str
) -> None:
    model = adapted(kinds=kinds, quantization=quantization)
    start = model.read_vector("AB")
    begin = model.read_vector(kinds)
    expected = one_by_one(model, ragged(), options(), how=how)
    require_equal(begin, together(model, ragged(), options(), how=how), expected)
    assert np.array_equal(model.read_vector("AB"), start)


@pytest.mark.parametrize(
    "changes",
    [
        {"local_steps": 1},
        {"local_epochs": 1.6, "batch_size": 2},
        {"optimizer": "adamw", "learning_rate": 0.01},
        {"optimizer": "adamw", "learning_rate": 0.01, "local_epochs": 1.6, "batch_size": 2},
    ],
)
@pytest.mark.parametrize("how", ["plain", "private"])
def test_steps_epochs_and_optimizers(
    adapted: MakeAdapted, changes: dict[str, Any], how: str
) -> None:
    """With epochs, clients of 1 to 9 examples take 1 to 8 plain steps: the short ones drop out."""
    model = adapted(kinds="AB")
    settings = options(**changes)
    begin = model.read_vector("AB")
    expected = one_by_one(model, ragged(), settings, how=how)
    require_equal(begin, together(model, ragged(), settings, how=how), expected)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", "phi3", "qwen2"])
def test_families(adapted: MakeAdapted, family: str) -> None:
    model = adapted(family, kinds="AB")
    begin = model.read_vector("AB")
    expected = one_by_one(model, ragged(), options())
    require_equal(begin, together(model, ragged(), options()), expected)


def test_who_else_is_in_the_group_does_not_show(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    begin = model.read_vector("B")
    alone = together(model, ragged(SIZES[:1]), options(), how="private")
    beside = together(model, ragged((5, 30, 2)), options(), how="private")
    require_equal(begin, beside[:1], alone)
    for tokens in (1, 17, 10_000):
        cut = together(model, ragged(), options(), how="private", tokens=tokens)
        require_equal(begin, cut[:1], alone)


def test_a_client_without_text_adds_noise_alone(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    begin = model.read_vector("B")
    clients = [*ragged(), []]
    expected = one_by_one(model, clients, options(), how="private")
    require_equal(begin, together(model, clients, options(), how="private"), expected)
    with pytest.raises(NoUsableText):
        together(model, clients, options())


def test_nobody_has_text(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    begin = model.read_vector("B")
    expected = one_by_one(model, [[], []], options(), how="private")
    require_equal(begin, together(model, [[], []], options(), how="private"), expected)


@pytest.mark.parametrize("how", ["plain", "private"])
def test_an_example_that_is_not_finite_is_its_clients_alone(adapted: MakeAdapted, how: str) -> None:
    """One token's embedding is infinite; one client has one example with that token."""
    model = adapted(kinds="AB")
    base: Any = model.base.model
    with torch.no_grad():
        base.get_input_embeddings().weight[63] = float("inf")
    clients = [
        [
            Example(ids=e.ids % 60 + 1, labels=np.where(e.labels < 0, IGNORED, e.ids % 60 + 1))
            for e in examples
        ]
        for examples in ragged()
    ]
    clients[2][4].ids[1] = 63
    settings = options(batch_size=9, local_steps=2)
    begin = model.read_vector("AB")
    expected = one_by_one(model, clients, settings, how=how)
    assert all(np.isfinite(vector).all() for vector in expected)
    require_equal(begin, together(model, clients, settings, how=how), expected)


def test_a_gradient_that_is_not_finite_everywhere_is_no_step(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    base: Any = model.base.model
    with torch.no_grad():
        base.get_input_embeddings().weight[5] = float("inf")
    ids = np.array([5, 6, 7], dtype=np.int64)
    clients = [[Example(ids=ids, labels=ids.copy())], ragged()[0]]
    spoilt = together(model, clients, options())[0]
    assert np.array_equal(spoilt, model.read_vector("B"))


def test_checkpointing_changes_nothing(adapted: MakeAdapted) -> None:
    model = adapted(kinds="AB")
    begin = model.read_vector("AB")
    expected = together(model, ragged(), options())
    model.enable_checkpointing()
    require_equal(begin, together(model, ragged(), options()), expected)


def test_the_model_is_as_before(adapted: MakeAdapted) -> None:
    """After a group, and after a group that failed."""
    model = adapted(kinds="B")
    expected = one_by_one(model, ragged(), options())
    together(model, ragged(), options())
    loose = next(p for n, p in model.peft_model.named_parameters() if "norm" in n)
    loose.requires_grad_(True)
    with pytest.raises(UnsupportedModel):
        together(model, ragged(), options())
    loose.requires_grad_(False)
    with pytest.raises(InvalidValue):
        train_private_group(
            model,
            ragged(),
            options(),
            **{**PRIVACY, "max_grad_norm": math.nan},
            sources=sources(4),
            tokens=40,
        )
    again = one_by_one(model, ragged(), options())
    assert all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
def test_a_group_is_measured_as_its_clients_are(adapted: MakeAdapted, tokens: int) -> None:
    model = adapted()
    clients = ragged()
    found = evaluate_group(model, clients, tokens=tokens)
    for examples, result in zip(clients, found, strict=True):
        expected = evaluate(model, examples, batch_size=3)
        assert result.tokens == expected.tokens
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)


def test_a_client_with_nothing_to_predict_is_told_apart(adapted: MakeAdapted) -> None:
    ids = np.array([5, 6, 7], dtype=np.int64)
    blank = Example(ids=ids, labels=np.full(3, IGNORED))
    model = adapted()
    first, second, third = evaluate_group(model, [[blank], ragged()[0], []], tokens=100)
    assert (first.tokens, third.tokens) == (0, 0)
    assert math.isnan(first.loss)
    assert math.isnan(third.loss)
    assert second.loss == pytest.approx(evaluate(model, ragged()[0], batch_size=8).loss, rel=1e-5)


@given(
    sizes=st.lists(st.integers(1, 40), max_size=30),
    tokens=st.integers(1, 200),
)
def test_batches_hold_every_example_once_and_no_more_than_fits(
    sizes: list[int], tokens: int
) -> None:
    examples = [
        Example(ids=np.zeros(size, dtype=np.int64), labels=np.zeros(size, dtype=np.int64))
        for size in sizes
    ]
    batches = [rows.tolist() for rows in by_length(examples, tokens=tokens)]
    assert sorted(row for rows in batches for row in rows) == list(range(len(sizes)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(sizes[row] for row in rows) <= tokens
    lengths = [sizes[row] for rows in batches for row in rows]
    assert lengths == sorted(lengths)
