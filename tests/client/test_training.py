"""Plain steps and DP-SGD against an independent float64 computation and exact statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from client.adapter import AdaptedModel
from client.examples import Example
from client.losses import collate, per_sequence_losses
from client.model import frozen_digest
from client.training import (
    TrainSettings,
    train_plain,
    train_private,
    train_unprotected_poisson,
)
from shared.errors import InvalidValue, NoUsableText, UnsupportedModel
from shared.privacy.noise import NoiseSource
from tests.client.conftest import (
    MakeAdapted,
    MakeFolder,
    make_examples,
    relative_error,
    truth_clipped_sum,
    truth_gradients,
    truth_model,
)

SILENT = 1e-12  # a noise multiplier whose noise is far below float32 rounding


def options(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.5}
    if "local_epochs" not in changes:
        values["local_steps"] = 1
    return TrainSettings(**{**values, **changes})


def private(
    model: AdaptedModel, examples: list[Example], settings: TrainSettings, **kw: Any
) -> int:
    values: dict[str, Any] = {
        "max_grad_norm": 0.4,
        "noise_multiplier": SILENT,
        "sampling_probability": 1.0,
        "source": NoiseSource.seeded(5),
    }
    return train_private(model, examples, settings, **{**values, **kw})


def test_the_loss_is_each_sequences_own_mean(
    adapted: MakeAdapted, model_folder: MakeFolder
) -> None:
    """Against the library's loss on one unpadded sequence, where the two definitions agree."""
    model = adapted()
    examples = make_examples(5)
    batch = collate(examples, 0)
    with torch.no_grad():
        found = per_sequence_losses(model.peft_model, batch)
        for index, example in enumerate(examples):
            ids = torch.from_numpy(example.ids)[None]
            labels = torch.from_numpy(example.labels)[None]
            one = model.peft_model(input_ids=ids, labels=labels).loss
            assert float(found[index]) == pytest.approx(float(one), rel=1e-5)


def test_padding_and_its_token_do_not_matter(adapted: MakeAdapted) -> None:
    for family in ("llama", "gpt2", "gpt_neox", "gemma2"):
        model = adapted(family)
        examples = make_examples(4)
        longer = Example(ids=np.full(30, 9, dtype=np.int64), labels=np.full(30, 9, dtype=np.int64))
        with torch.no_grad():
            short = per_sequence_losses(model.peft_model, collate(examples, 0))
            long = per_sequence_losses(model.peft_model, collate([*examples, longer], 33))[:4]
        assert torch.allclose(short, long, rtol=1e-5)


@pytest.mark.parametrize("kinds", ["B", "AB"])
def test_a_plain_sgd_step_follows_the_mean_gradient(
    adapted: MakeAdapted, model_folder: MakeFolder, kinds: str
) -> None:
    model = adapted(kinds=kinds)
    examples = make_examples(5)
    mean = truth_gradients(truth_model(model, model_folder()), examples).mean(dim=0)
    before = model.read_vector(kinds)
    settings = options(batch_size=8, physical_batch=2)
    train_plain(model, examples, settings, rng=np.random.default_rng(0))
    change = torch.from_numpy(model.read_vector(kinds) - before)
    assert relative_error(change, -0.5 * mean) <= 1e-5


def test_an_adamw_step_equals_torchs(adapted: MakeAdapted, model_folder: MakeFolder) -> None:
    """The first AdamW step is the sign of the gradient times the learning rate, nearly."""
    model = adapted(kinds="B")
    examples = make_examples(4)
    mean = truth_gradients(truth_model(model, model_folder()), examples).mean(dim=0)
    before = model.read_vector("B")
    settings = options(optimizer="adamw", learning_rate=0.01)
    train_plain(model, examples, settings, rng=np.random.default_rng(0))
    change = torch.from_numpy(model.read_vector("B") - before)
    expected = -0.01 * mean / (mean.abs() + 1e-8)
    assert relative_error(change, expected) <= 1e-4


def test_local_epochs_visit_every_example(adapted: MakeAdapted) -> None:
    """Seen through the model: one pass over 5 examples in batches of 2 is 3 forward passes."""
    model = adapted()
    sizes = []
    with model.peft_model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    ):
        settings = options(local_epochs=2.4, batch_size=2)
        train_plain(model, make_examples(5), settings, rng=np.random.default_rng(0))
    assert sizes == [2, 2, 1, 2, 2, 1, 2]


def test_steps_draw_without_replacement(adapted: MakeAdapted) -> None:
    model = adapted()
    seen: list[set[tuple[int, ...]]] = []
    with model.peft_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append({tuple(row) for row in kwargs["input_ids"].tolist()}),
        with_kwargs=True,
    ):
        settings = options(local_steps=3, batch_size=4)
        train_plain(model, make_examples(9), settings, rng=np.random.default_rng(0))
    assert [len(rows) for rows in seen] == [4, 4, 4]
    assert seen[0] != seen[1]


def test_plain_training_is_reproducible_even_with_dropout(adapted: MakeAdapted) -> None:
    model = adapted(dropout=0.2)
    examples = make_examples(6)
    start = model.read_vector("AB")
    ends = []
    state = torch.random.get_rng_state()
    for seed in (1, 1, 2):
        model.load_vector(start, "AB")
        train_plain(model, examples, options(local_steps=2), rng=np.random.default_rng(seed))
        ends.append(model.read_vector("AB"))
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_plain_training_leaves_a_non_finite_example_out(adapted: MakeAdapted) -> None:
    model = adapted(tie_word_embeddings=False, kinds="B")
    with torch.no_grad():
        embedding: Any = model.base.model.get_input_embeddings()
        embedding.weight[63] = torch.inf
    good = [e for e in make_examples(6) if 63 not in e.ids][:3]
    ids = np.array([4, 63, 9], dtype=np.int64)
    start = model.read_vector("B")
    ends = []
    for examples in ([*good, Example(ids=ids, labels=ids.copy())], good):
        model.load_vector(start, "B")
        train_plain(model, examples, options(), rng=np.random.default_rng(0))
        ends.append(model.read_vector("B") - start)
    # Four examples share the mean in one case, three in the other.
    assert np.isfinite(ends[0]).all()
    assert np.allclose(ends[0] * 4, ends[1] * 3, rtol=1e-4, atol=1e-7)


def test_plain_training_needs_examples(adapted: MakeAdapted) -> None:
    with pytest.raises(NoUsableText):
        train_plain(adapted(), [], options(), rng=np.random.default_rng(0))


@pytest.mark.parametrize("engine", ["fused", "microbatch", "opacus"])
def test_private_steps_replayed_from_the_same_coins_and_noise(
    adapted: MakeAdapted, model_folder: MakeFolder, engine: str
) -> None:
    """Replay: the same seeded source, float64 truth gradients, the textbook update rule."""
    model = adapted(kinds="B")
    examples = make_examples(9)
    clip, z, q, rate, divisor = 0.4, 0.7, 0.3, 0.5, 4
    start = model.read_vector("B")
    expected = torch.from_numpy(start).double()
    source = NoiseSource.seeded(11)
    for _ in range(4):
        rows = source.poisson_subsample(len(examples), q)
        model.load_vector(expected.float().numpy(), "B")
        total = torch.zeros_like(expected)
        if rows.size:
            truth = truth_model(model, model_folder())
            total = truth_clipped_sum(truth_gradients(truth, [examples[r] for r in rows]), clip)
        noise = torch.from_numpy(source.normal(total.numel()))
        expected = expected - rate * (total + z * clip * noise) / divisor
    model.load_vector(start, "B")
    settings = options(local_steps=4, batch_size=divisor, physical_batch=2, clipper=engine)
    steps = train_private(
        model,
        examples,
        settings,
        max_grad_norm=clip,
        noise_multiplier=z,
        sampling_probability=q,
        source=NoiseSource.seeded(11),
    )
    assert steps == 4
    found = torch.from_numpy(model.read_vector("B"))
    change = expected - torch.from_numpy(start)
    assert float((found - expected).norm() / change.norm()) <= 1e-6


def test_the_physical_batch_changes_nothing(adapted: MakeAdapted) -> None:
    model = adapted()
    examples = make_examples(7)
    start = model.read_vector("AB")
    ends = []
    for physical in (1, 3, 32):
        model.load_vector(start, "AB")
        private(model, examples, options(physical_batch=physical))
        ends.append(torch.from_numpy(model.read_vector("AB") - start))
    assert relative_error(ends[0], ends[2]) <= 2e-6
    assert relative_error(ends[1], ends[2]) <= 2e-6


def test_the_divisor_is_public(adapted: MakeAdapted) -> None:
    """Twice the same example moves the factors twice as far, never the same distance."""
    model = adapted(kinds="B")
    one = make_examples(1)
    start = model.read_vector("B")
    moves = []
    for examples in (one, [*one, *one]):
        model.load_vector(start, "B")
        private(model, examples, options())
        moves.append(torch.from_numpy(model.read_vector("B") - start))
    assert relative_error(moves[1], 2 * moves[0]) <= 1e-5


@pytest.mark.statistical
def test_noise_has_the_standard_deviation_of_the_plan(adapted: MakeAdapted) -> None:
    """Chi-square, two-sided, false-alarm rate 1e-6; 5 % off is found with power above 0.99999.

    Without examples every step is noise alone, so the change is the noise.
    """
    model = adapted(kinds="B")
    clip, z, divisor, rate = 0.7, 1.3, 5, 0.25
    zero = np.zeros(model.spec.size("B"), dtype=np.float32)
    draws = []
    for seed in range(30):
        model.load_vector(zero, "B")
        settings = options(batch_size=divisor, learning_rate=rate)
        source = NoiseSource.seeded(seed, "noise-test")
        assert (
            private(model, [], settings, max_grad_norm=clip, noise_multiplier=z, source=source) == 1
        )
        draws.append(model.read_vector("B"))
    values = np.concatenate(draws).astype(np.float64) / (rate * z * clip / divisor)
    n = values.size
    assert n > 30_000
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], n)
    assert low < float(np.sum(values**2)) < high
    assert abs(float(values.mean())) < 5 / math.sqrt(n)
    assert stats.kstest(values, "norm").pvalue > 1e-6
    # Power: at 0.95 of the standard deviation the statistic stays below the lower bound.
    assert stats.chi2.cdf(low / 0.95**2, n) > 0.99999


def test_an_empty_sample_is_a_noise_only_step_and_counts(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    start = model.read_vector("B")
    steps = private(
        model,
        make_examples(3),
        options(local_steps=3),
        noise_multiplier=1.0,
        sampling_probability=1e-9,
    )
    assert steps == 3
    change = (model.read_vector("B") - start).astype(np.float64)
    expected = 0.5 * 0.4 / 4 * math.sqrt(3)
    assert float(change.std()) == pytest.approx(expected, rel=0.15)


def test_adamw_steps_on_noise_alone_too(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    start = model.read_vector("B")
    settings = options(optimizer="adamw", learning_rate=0.01)
    assert private(model, [], settings, noise_multiplier=1.0) == 1
    change = model.read_vector("B") - start
    assert np.abs(change) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    ("epochs", "probability", "steps"), [(1.0, 0.1, 10), (0.3, 0.1, 3), (0.01, 0.5, 1)]
)
def test_the_number_of_steps_does_not_depend_on_the_data(
    adapted: MakeAdapted, epochs: float, probability: float, steps: int
) -> None:
    model = adapted(kinds="B")
    settings = options(local_epochs=epochs)
    for count in (0, 1, 3):
        examples = make_examples(count)
        assert private(model, examples, settings, sampling_probability=probability) == steps


def test_the_twin_takes_the_same_steps_without_clip_and_noise(
    adapted: MakeAdapted, model_folder: MakeFolder
) -> None:
    model = adapted(kinds="B")
    examples = make_examples(8)
    start = model.read_vector("B")
    rows = NoiseSource.seeded(3).poisson_subsample(8, 0.5)
    truth = truth_model(model, model_folder())
    total = truth_gradients(truth, [examples[row] for row in rows]).sum(dim=0)
    steps = train_unprotected_poisson(
        model, examples, options(), sampling_probability=0.5, source=NoiseSource.seeded(3)
    )
    assert steps == 1
    change = torch.from_numpy(model.read_vector("B") - start)
    assert relative_error(change, -0.5 * total / 4) <= 1e-5


def test_the_twin_takes_an_empty_step(adapted: MakeAdapted) -> None:
    model = adapted(kinds="B")
    start = model.read_vector("B")
    source = NoiseSource.seeded(3)
    train_unprotected_poisson(
        model, make_examples(2), options(), sampling_probability=1e-9, source=source
    )
    assert np.array_equal(model.read_vector("B"), start)


@pytest.mark.parametrize("kinds", ["A", "B", "AB"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "nf4"])
def test_the_frozen_base_does_not_move(adapted: MakeAdapted, quantization: str, kinds: str) -> None:
    model = adapted(quantization=quantization, kinds=kinds)
    frozen = "".join(kind for kind in "AB" if kind not in kinds)
    before = frozen_digest(model.peft_model)
    kept = model.read_vector(frozen) if frozen else None
    private(model, make_examples(4), options(), noise_multiplier=1.0)
    train_plain(model, make_examples(4), options(), rng=np.random.default_rng(0))
    assert frozen_digest(model.peft_model) == before
    if kept is not None:
        assert np.array_equal(model.read_vector(frozen), kept)


def test_training_that_reaches_no_adapter_is_reported(adapted: MakeAdapted) -> None:
    model = adapted()
    head: Any = model.base.model.get_submodule("lm_head")
    with (
        head.register_forward_hook(lambda _, __, output: output.detach()),
        pytest.raises(UnsupportedModel, match="no gradient"),
    ):
        train_plain(model, make_examples(2), options(), rng=np.random.default_rng(0))
    block = model.base.model.get_submodule("model.layers.1")
    with (
        block.register_forward_pre_hook(lambda _, args: (args[0].detach(), *args[1:])),
        pytest.raises(UnsupportedModel, match="no gradient"),
    ):
        train_plain(model, make_examples(2), options(), rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": math.inf},
        {"max_grad_norm": 0.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.5},
    ],
)
def test_bad_privacy_numbers_are_refused_before_any_step(
    adapted: MakeAdapted, changes: dict[str, float]
) -> None:
    model = adapted()
    start = model.read_vector("AB")
    with pytest.raises(InvalidValue):
        private(model, make_examples(2), options(), **changes)
    assert np.array_equal(model.read_vector("AB"), start)


@pytest.mark.parametrize(
    "changes",
    [
        {"local_steps": 0},
        {"local_steps": True},
        {"local_steps": 1, "local_epochs": 1.0},
        {"local_steps": None},
        {"local_epochs": math.nan},
        {"batch_size": 0},
        {"learning_rate": math.inf},
        {"optimizer": "lion"},
        {"physical_batch": 0},
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        options(**changes)


def test_a_batch_needs_examples_with_labels() -> None:
    with pytest.raises(InvalidValue):
        collate([], 0)
    with pytest.raises(InvalidValue):
        collate([Example(ids=np.arange(3), labels=np.arange(2))], 0)
