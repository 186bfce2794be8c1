"""A whole adapter held narrower for a while, against a model that was made narrow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.adapter import AdaptedModel, adapt
from client.clipping import make_clipper
from client.evaluation import evaluate
from client.losses import collate
from client.model import load_base
from client.training import TrainSettings, train_private
from shared.baseshape import with_rank
from shared.lora import Vector, initial_factors
from shared.mixedranks import MixedRanks
from shared.privacy.noise import NoiseSource
from shared.seeding import data_rng
from tests.client.conftest import MakeAdapted, MakeFolder, make_examples

SETTINGS = TrainSettings(local_steps=3, batch_size=4, learning_rate=0.5)


@pytest.fixture
def narrow(model_folder: MakeFolder) -> AdaptedModel:
    """The model that a device of rank 2 would make by itself: the same scale, the same A."""
    model = adapt(load_base(str(model_folder("llama"))), r=2, alpha=4, target_modules="all-linear")
    whole = with_rank(model.spec, 4)
    factors = initial_factors(whole, 7)
    model.load({f.name: factors[f.name][:2] for f in model.spec.of_kind("A")})
    return model


def start_of(model: AdaptedModel, kinds: str) -> Vector:
    """Return the narrow part of what the model holds."""
    ranks = MixedRanks(model.spec, np.array([2, 4]))
    return ranks.narrow(model.read_vector(kinds), 2, kinds)


@pytest.mark.parametrize("clipper", ["fused", "microbatch", "opacus"])
@pytest.mark.parametrize("kinds", ["B", "AB"])
def test_it_trains_as_a_narrow_model_does(
    clipper: str, kinds: str, adapted: MakeAdapted, narrow: AdaptedModel
) -> None:
    """Clip and noise see the narrow coordinates alone; afterwards the whole adapter is back."""
    wide = adapted(kinds=kinds)
    before = wide.read_vector("AB")
    start, examples = start_of(wide, "B"), make_examples(6, seed=3)
    spec = with_rank(wide.spec, 2)
    narrow.load_vector(start, "B")
    narrow.set_trainable(kinds)
    batch = collate(examples, 0)
    with make_clipper("fused", narrow) as engine:
        expected = torch.cat([g.reshape(-1) for g in engine.clipped_sum(batch, 0.01)])
    with wide.narrowed(spec):
        assert wide.spec.r == 2
        assert sum(p.numel() for _, p in wide.trainable) == narrow.spec.size(kinds)
        with wide.training(), make_clipper(clipper, wide) as engine:
            found = torch.cat([g.reshape(-1) for g in engine.clipped_sum(batch, 0.01)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(wide.read_vector("AB"), before)
    assert (wide.spec.r, wide.kinds) == (4, kinds)


def test_a_private_participation_is_that_of_a_narrow_model(
    adapted: MakeAdapted, narrow: AdaptedModel
) -> None:
    wide, results = adapted(kinds="B"), []
    start, examples = start_of(wide, "B"), make_examples(6, seed=3)
    narrow.load_vector(start, "B")
    narrow.set_trainable("B")
    with wide.narrowed(with_rank(wide.spec, 2)):
        wide.load_vector(start, "B")
        for model in (wide, narrow):
            steps = train_private(
                model,
                examples,
                SETTINGS,
                max_grad_norm=0.1,
                noise_multiplier=1.0,
                sampling_probability=0.5,
                source=NoiseSource.seeded(4),
                rng=data_rng(1),
            )
            assert steps == 3
            results.append(model.read_vector("B"))
    assert np.linalg.norm(results[0] - start) > 0
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_a_whole_adapter_without_its_last_columns_computes_the_same(adapted: MakeAdapted) -> None:
    wide, examples = adapted(), make_examples(5, seed=1)
    ranks = MixedRanks(wide.spec, np.array([2, 4]))
    start = start_of(wide, "B")
    with wide.narrowed(ranks.spec_at(2)):
        found = evaluate(wide, examples, batch_size=2).loss
    whole = evaluate(wide, examples, batch_size=2).loss
    wide.load_vector(ranks.widen(start, 2, "B"), "B")
    assert found == pytest.approx(evaluate(wide, examples, batch_size=2).loss, rel=1e-6)
    assert abs(found - whole) > 1e-5


def test_a_failure_inside_leaves_the_whole_adapter(adapted: MakeAdapted) -> None:
    wide = adapted()
    before = wide.read_vector("AB")

    def fail() -> None:
        with wide.narrowed(with_rank(wide.spec, 1)):
            wide.load_vector(np.ones(wide.spec.size("B"), np.float32), "B")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    np.testing.assert_array_equal(wide.read_vector("AB"), before)
    with wide.narrowed(wide.spec):
        np.testing.assert_array_equal(wide.read_vector("AB"), before)
