"""Training without torch takes the steps of training with torch, and believes no program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client import training as torch_training
from client.edge.adapter import EdgeAdapter
from client.edge.program import StepFile, StepManifest
from client.edge.training import train_plain, train_private, train_unprotected_poisson
from client.examples import IGNORED, Example
from client.stepping import NoisedSteps, TrainSettings
from shared.errors import ConflictingSettings, NoUsableText, SensitivityError
from shared.lora import AdapterSpec, Factor, Vector
from shared.privacy.noise import NoiseSource
from tests.client.conftest import make_examples
from tests.client.edge.conftest import CLIP, MakeStep, Step, start

SPEC = AdapterSpec(
    factors=(
        Factor(name="m.lora_A.weight", kind="A", shape=(2, 3)),
        Factor(name="m.lora_B.weight", kind="B", shape=(4, 2)),
    ),
    r=2,
    lora_alpha=2.0,
    target_modules=("m",),
)


def manifest(trained: str = "AB", clip: float | None = None) -> StepManifest:
    files = [
        StepFile(name=name, size=1, sha256="0" * 64)
        for name in ("base.bin", "step.onnx", "tokenizer.json")
    ]
    return StepManifest(
        runtime="onnx",
        quantization="none",
        length=8,
        max_grad_norm=clip,
        trained=trained,
        vocabulary=50,
        bos=None,
        eos=1,
        base_digest="a" * 64,
        adapter=SPEC,
        files=tuple(files),
        deviation=1e-6,
    )


@dataclass
class Says:
    """A program that returns what it likes, whatever its manifest promises."""

    manifest: StepManifest
    value: Vector

    def gradient(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> Vector:
        del example, factors
        return self.value

    def loss(self, example: Example, factors: Mapping[str, NDArray[np.float32]]) -> float:
        del factors
        return float(example.ids.size)


def settings(optimizer: str = "sgd", **changes: object) -> TrainSettings:
    said: dict[str, object] = {"local_steps": 4, "batch_size": 3, "learning_rate": 0.05}
    return TrainSettings(optimizer=optimizer, **{**said, **changes})  # type: ignore[arg-type]


def edge_adapter(step: Step) -> EdgeAdapter:
    adapter = EdgeAdapter(step.engine(), step.kinds)
    adapter.load(start(step.model()), "AB")
    return adapter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "optimizer"), [("gpt2", "sgd"), ("gpt2", "adamw"), ("llama", "sgd")]
)
def test_dp_sgd_equals_torch_for_the_same_noise(
    make_step: MakeStep, family: str, optimizer: str
) -> None:
    step = make_step(family)
    model, adapter, examples = step.model(), edge_adapter(step), make_examples(8)
    said: dict[str, Any] = {
        "max_grad_norm": CLIP,
        "noise_multiplier": 0.3,
        "sampling_probability": 0.4,
    }
    begin = model.read_vector("AB")
    assert np.array_equal(adapter.read(), begin)
    counts = [
        torch_training.train_private(
            model, examples, settings(optimizer), source=NoiseSource.seeded(5, "x"), **said
        ),
        train_private(
            adapter, examples, settings(optimizer), source=NoiseSource.seeded(5, "x"), **said
        ),
    ]
    assert counts == [4, 4]
    truth = model.read_vector("AB")
    moved = np.linalg.norm(truth - begin)
    assert np.linalg.norm(adapter.read() - truth) <= 1e-5 * moved
    other = edge_adapter(step)
    train_private(other, examples, settings(optimizer), source=NoiseSource.seeded(6, "x"), **said)
    assert np.linalg.norm(other.read() - truth) > 0.1 * moved


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [None, 1.5])
def test_plain_training_equals_torch(make_step: MakeStep, epochs: float | None) -> None:
    step = make_step("gpt2", kinds="B", clip=None)
    model, adapter, examples = step.model(), edge_adapter(step), make_examples(5)
    said = settings(local_steps=3 if epochs is None else None, local_epochs=epochs)
    begin = model.read_vector("B")
    torch_training.train_plain(model, examples, said, rng=np.random.default_rng(3))
    train_plain(adapter, examples, said, rng=np.random.default_rng(3))
    truth = model.read_vector("B")
    assert np.linalg.norm(adapter.read() - truth) <= 1e-5 * np.linalg.norm(truth - begin)


@pytest.mark.slow
def test_the_unprotected_twin_equals_torch(make_step: MakeStep) -> None:
    step = make_step("gpt2", kinds="B", clip=None)
    model, adapter, examples = step.model(), edge_adapter(step), make_examples(5)
    begin = model.read_vector("B")
    said: dict[str, Any] = {"sampling_probability": 0.4}
    torch_training.train_unprotected_poisson(
        model, examples, settings(), source=NoiseSource.seeded(4, "x"), **said
    )
    taken = train_unprotected_poisson(
        adapter, examples, settings(), source=NoiseSource.seeded(4, "x"), **said
    )
    assert taken == 4
    truth = model.read_vector("B")
    assert np.linalg.norm(adapter.read() - truth) <= 1e-5 * np.linalg.norm(truth - begin)


@given(
    scale=st.floats(1e-30, 1e30) | st.sampled_from([float("nan"), float("inf"), 0.0, 3e38]),
    bound=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_no_program_can_move_a_sum_further_than_the_clip(
    scale: float, bound: float, seed: int
) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        value = np.random.default_rng(seed).standard_normal(14).astype(np.float32)
        value *= np.float32(scale)
    adapter = EdgeAdapter(Says(manifest(), value), "AB")
    total = adapter.sum_of(make_examples(1), bound)
    assert np.linalg.norm(total) <= bound  # and so is finite
    if np.isfinite(value).all() and np.linalg.norm(value.astype(np.float64)) < bound * 0.999:
        assert np.array_equal(total, value.astype(np.float64))


def test_an_empty_sample_is_a_step_of_noise_alone() -> None:
    adapter = EdgeAdapter(Says(manifest(), np.ones(14, np.float32)), "AB")
    noised = train_private(
        adapter,
        [],
        settings(),
        max_grad_norm=0.5,
        noise_multiplier=2.0,
        sampling_probability=0.5,
        source=NoiseSource.seeded(1, "x"),
    )
    source, expected = NoiseSource.seeded(1, "x"), np.zeros(14)
    for _ in range(4):
        source.poisson_subsample(0, 0.5)
        expected -= 0.05 * 2.0 * 0.5 * source.normal(14) / 3
    assert noised == 4
    assert np.allclose(adapter.read(), expected, rtol=1e-5)


def test_a_step_left_without_noise_is_noticed() -> None:
    steps = NoisedSteps(
        settings(), max_grad_norm=1.0, noise_multiplier=1.0, sampling_probability=0.5
    )
    source = NoiseSource.seeded(1)
    with pytest.raises(SensitivityError, match="expected once"):
        for _ in steps.samples(4, source):
            pass
    assert steps.noised == 0


def test_a_program_for_other_factors_or_a_smaller_clip_is_refused() -> None:
    with pytest.raises(ConflictingSettings, match="trains 'B'"):
        EdgeAdapter(Says(manifest("B"), np.zeros(8, np.float32)), "AB")
    adapter = EdgeAdapter(Says(manifest(clip=0.25), np.zeros(14, np.float32)), "AB")
    with pytest.raises(ConflictingSettings, match=r"to 0\.25, the round clips to 0\.5"):
        train_private(
            adapter,
            [],
            settings(),
            max_grad_norm=0.5,
            noise_multiplier=1.0,
            sampling_probability=0.5,
            source=NoiseSource.seeded(1),
        )
    partial = EdgeAdapter(Says(manifest(clip=2.0), np.zeros(14, np.float32)), "B")
    with pytest.raises(ConflictingSettings, match="trains 'B' alone"):
        train_plain(partial, make_examples(2), settings(), rng=np.random.default_rng(1))
    with pytest.raises(ConflictingSettings, match="does not clip"):
        train_plain(adapter, make_examples(2), settings(), rng=np.random.default_rng(1))
    with pytest.raises(NoUsableText):
        train_plain(adapter, [], settings(), rng=np.random.default_rng(1))


def test_factors_are_loaded_and_read_by_kind() -> None:
    adapter = EdgeAdapter(Says(manifest("B"), np.zeros(8, np.float32)), "B")
    everything = np.arange(14, dtype=np.float32)
    adapter.load(everything, "AB")
    assert np.array_equal(adapter.read(), everything[6:])
    adapter.write(-np.ones(8, np.float32))
    adapter.load(np.full(6, 2.0, np.float32), "A")
    assert np.array_equal(adapter.read(), -np.ones(8))


def test_a_narrow_adapter_is_the_corner_of_the_steps() -> None:
    """What the program says beyond it is left out before the clip, whatever it is."""
    value = np.arange(1, 15, dtype=np.float32)
    narrow = replace(
        SPEC,
        factors=(
            Factor(name="m.lora_A.weight", kind="A", shape=(1, 3)),
            Factor(name="m.lora_B.weight", kind="B", shape=(4, 1)),
        ),
        r=1,
        lora_alpha=1.0,
    )
    adapter = EdgeAdapter(Says(manifest(), value), "AB", narrow)
    held = np.array([1, 2, 3, 7, 9, 11, 13], dtype=np.float64)  # the first row, the first column
    assert np.array_equal(adapter.sum_of(make_examples(1)), held)
    total = adapter.sum_of(make_examples(1), 0.5)
    assert np.allclose(total, 0.5 * held / np.linalg.norm(held), rtol=1e-6)
    adapter.set_trainable("B")
    assert np.array_equal(adapter.sum_of(make_examples(1)), held[3:])
    adapter.load(np.arange(7, dtype=np.float32), "AB")
    assert np.array_equal(adapter.read(), np.arange(3, 7))
    adapter.write(np.zeros(4, np.float32))
    assert np.array_equal(adapter.read_vector("AB"), [0, 1, 2, 0, 0, 0, 0])
    with pytest.raises(ConflictingSettings, match="rank 2 is no part"):
        EdgeAdapter(Says(replace(manifest(), adapter=narrow), value), "AB", SPEC)


def test_a_loss_is_a_mean_over_tokens_that_have_a_label() -> None:
    adapter = EdgeAdapter(Says(manifest(), np.zeros(14, np.float32)), "AB")
    ids = [np.arange(n, dtype=np.int64) for n in (3, 5, 4)]
    examples = [Example(ids=one, labels=one.copy()) for one in ids[:2]]
    examples.append(Example(ids=ids[2], labels=np.full(4, IGNORED)))
    assert adapter.loss_of(examples) == pytest.approx((2 * 3 + 4 * 5) / 6)
    assert np.isnan(adapter.loss_of(examples[2:]))
