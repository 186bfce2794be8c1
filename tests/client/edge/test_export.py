"""The exported gradient against float64 truth, one example at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.adapter import adapt
from client.edge.export import export_step
from client.edge.program import BASE, MANIFEST, PROGRAM, load_step
from client.evaluation import sequence_losses
from client.examples import IGNORED, Example
from client.model import load_base
from shared.errors import ConfigError, InvalidValue, RunFolderExists, UnsupportedModel
from tests.client.conftest import (
    MakeAdapted,
    MakeFolder,
    make_examples,
    relative_error,
    truth_clipped_sum,
    truth_gradients,
    truth_model,
)
from tests.client.edge.conftest import CLIP, LENGTH, MakeStep

FAMILIES = ["gpt2", "llama", "qwen2"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clipped_gradient_equals_float64_truth(make_step: MakeStep, family: str) -> None:
    step = make_step(family)
    model, engine = step.model(), step.engine()
    examples = make_examples(5)
    gradients = truth_gradients(truth_model(model, step.base), examples)
    for example, gradient in zip(examples, gradients, strict=True):
        found = torch.from_numpy(engine.gradient(example, model.factors()))
        # The truth saw the example alone, the program padded it.
        assert relative_error(found, truth_clipped_sum(gradient[None], CLIP)) <= 1e-5
        assert float(found.norm()) <= CLIP * (1 + 1e-6)
    losses = sequence_losses(model, examples, batch_size=1, reduction="mean")
    told = [engine.loss(example, model.factors()) for example in examples]
    assert told == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_only_the_factors_that_train_have_gradients(make_step: MakeStep) -> None:
    step = make_step("gpt2", kinds="B", clip=None)
    model, engine = step.model(), step.engine()
    examples = make_examples(3)
    gradients = truth_gradients(truth_model(model, step.base), examples)
    for example, gradient in zip(examples, gradients, strict=True):
        found = torch.from_numpy(engine.gradient(example, model.factors()))
        assert found.numel() == model.spec.size("B")
        assert relative_error(found, gradient) <= 1e-5  # and no clip
    assert float(gradients.norm(dim=1).max()) > CLIP


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_without_labels_has_a_zero_gradient(make_step: MakeStep, family: str) -> None:
    step = make_step(family)
    model, engine = step.model(), step.engine()
    ids = np.arange(5, dtype=np.int64)
    example = Example(ids=ids, labels=np.full_like(ids, IGNORED))
    assert not engine.gradient(example, model.factors()).any()
    empty = Example(ids=ids[:0], labels=ids[:0])
    assert not engine.gradient(empty, model.factors()).any()


@pytest.mark.slow
def test_an_example_at_the_full_length_counts_every_label(make_step: MakeStep) -> None:
    step = make_step("gpt2")
    model, engine = step.model(), step.engine()
    ids = np.random.default_rng(1).integers(3, 60, size=LENGTH)
    one = [Example(ids=ids, labels=ids.copy())]
    truth = truth_clipped_sum(truth_gradients(truth_model(model, step.base), one), CLIP)
    assert relative_error(torch.from_numpy(engine.gradient(one[0], model.factors())), truth) <= 1e-5


@pytest.mark.slow
def test_the_base_is_a_file_of_its_own_and_the_adapter_is_in_none(make_step: MakeStep) -> None:
    step = make_step("gpt2")
    model = step.model()
    names = {path.name for path in step.folder.iterdir()}
    assert names == {BASE, MANIFEST, PROGRAM, "tokenizer.json"}
    program, base = (step.folder / PROGRAM).read_bytes(), (step.folder / BASE).read_bytes()
    weight = model.base.model.get_parameter("transformer.wte.weight").detach().numpy()
    assert weight.tobytes() in base
    assert weight.tobytes() not in program
    for value in model.factors().values():
        assert value.tobytes() not in base
        assert value.tobytes() not in program
    assert load_step(step.folder).base_digest == model.base.digest
    assert b".py" not in program  # nothing of the machine that exported


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "cosine"), [("int8", 0.999), ("int4", 0.95)])
def test_a_quantised_base_is_smaller_and_gives_almost_the_same_gradient(
    make_step: MakeStep, quantization: str, cosine: float
) -> None:
    step, exact = make_step("qwen2", quantization=quantization), make_step("qwen2")
    assert (step.folder / BASE).stat().st_size < 0.7 * (exact.folder / BASE).stat().st_size
    model, examples = step.model(), make_examples(4)
    gradients = truth_gradients(truth_model(model, step.base), examples)
    engine = step.engine()
    for example, gradient in zip(examples, gradients, strict=True):
        found = torch.from_numpy(engine.gradient(example, model.factors())).double()
        assert torch.cosine_similarity(found, gradient, dim=0) >= cosine
        assert float(found.norm()) <= CLIP * (1 + 1e-6)
    assert step.exported.comparison.cosine >= cosine


@pytest.mark.slow
def test_an_example_that_does_not_fit_is_refused(make_step: MakeStep) -> None:
    step = make_step("gpt2")
    factors, engine = step.model().factors(), step.engine()
    long = np.ones(LENGTH + 1, dtype=np.int64)
    with pytest.raises(InvalidValue, match="17 tokens"):
        engine.gradient(Example(ids=long, labels=long), factors)
    for wrong in (-1, 64):
        ids = np.array([3, wrong, 4])
        with pytest.raises(InvalidValue, match="does not know"):
            engine.gradient(Example(ids=ids, labels=ids), factors)
    ids = np.array([3, 4, 5])
    with pytest.raises(InvalidValue, match="does not know"):
        engine.gradient(Example(ids=ids, labels=ids + 1), factors)


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    adapted: MakeAdapted, tmp_path: Path
) -> None:
    said = {"length": LENGTH, "max_grad_norm": 1.0}
    out = tmp_path / "step"
    for model, why in (
        (adapted(dropout=0.1), "dropout"),
        (adapted(quantization="int8"), "quantised"),
    ):
        with pytest.raises(UnsupportedModel, match=why):
            export_step(model, out, length=LENGTH, max_grad_norm=1.0)
    model = adapted("gpt2")
    changes: list[tuple[dict[str, object], type[ConfigError]]] = [
        ({"length": 1}, InvalidValue),
        ({"length": 65}, InvalidValue),
        ({"max_grad_norm": 0.0}, InvalidValue),
        ({"max_grad_norm": float("nan")}, InvalidValue),
        ({"quantization": "int3"}, InvalidValue),
    ]
    for change, error in changes:
        with pytest.raises(error):
            export_step(model, out, **{**said, **change})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(RunFolderExists):
        export_step(model, out, length=LENGTH, max_grad_norm=1.0)


@pytest.mark.slow
def test_a_program_that_computes_something_else_is_not_written(
    model_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.edge import engine

    model = adapt(
        load_base(str(model_folder("gpt2", n_layer=1))), r=2, alpha=4, target_modules=["c_attn"]
    )
    honest = engine.OnnxStep.gradient
    monkeypatch.setattr(engine.OnnxStep, "gradient", lambda *said: honest(*said) * 1.001)
    with pytest.raises(UnsupportedModel, match="not that of PyTorch"):
        export_step(model, tmp_path / "step", length=8, max_grad_norm=None)
    assert not list(tmp_path.iterdir())
