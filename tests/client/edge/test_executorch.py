"""The gradient on ExecuTorch against float64 truth, with exact and with rounded weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.adapter import AdaptedModel
from client.edge.etengine import ExecutorchStep
from client.edge.export import require_exporter
from client.edge.program import MANIFEST, PTD, PTE, load_step
from client.evaluation import sequence_losses
from client.examples import IGNORED, Example
from shared.errors import BaseModelMismatch, MissingDependency
from tests.client.conftest import (
    make_examples,
    relative_error,
    truth_clipped_sum,
    truth_gradients,
    truth_model,
)
from tests.client.edge.conftest import CLIP, MakeStep, Step

pytestmark = pytest.mark.slow
FAMILIES = ["gpt2", "llama", "qwen2"]


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a matrix as its codes say: int8 by the row, int4 by blocks of 32."""
    value = weight.detach().double()
    if bits == 8:
        # Padding has a row of zeros.
        scale = (value.abs().max(dim=1, keepdim=True).values / 127).clamp_min(1e-9)
        scale = scale.float().double()
        return torch.round(value / scale) * scale
    out = torch.empty_like(value)
    for row in range(value.shape[0]):
        for start in range(0, value.shape[1], 32):
            block = value[row, start : start + 32]
            scale = (block[block.abs().argmax()] / -8).float().double()
            out[row, start : start + 32] = torch.round(block / scale).clamp(-8, 7) * scale
    return out


def round_base(model: torch.nn.Module, bits: int) -> int:
    """Round the matrices of a model's base; those that are looked up, or narrow, to int8."""
    kept = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or "lora_" in name:
            continue
        coarse = bits == 4 and "embed" not in name and "wte" not in name and "wpe" not in name
        coarse = coarse and parameter.shape[1] % 32 == 0
        parameter.data.copy_(rounded(parameter, 4 if coarse else 8))
        kept += 1
    return kept


def agrees(step: Step, model: AdaptedModel, bits: int | None = None) -> None:
    engine, examples = step.engine(), make_examples(4)
    truth = truth_model(model, step.base)
    if bits is not None:
        assert round_base(truth, bits) >= 8
    gradients = truth_gradients(truth, examples)
    for example, gradient in zip(examples, gradients, strict=True):
        found = torch.from_numpy(engine.gradient(example, model.factors()))
        # The truth saw the example alone, the program padded it.
        assert relative_error(found, truth_clipped_sum(gradient[None], CLIP)) <= 1e-5
        assert float(found.norm()) <= CLIP * (1 + 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_equals_float64_truth_and_an_empty_row_gives_zero(
    make_step: MakeStep, family: str
) -> None:
    step = make_step(family, runtime="executorch")
    model, engine = step.model(), step.engine()
    agrees(step, model)
    losses = sequence_losses(model, make_examples(4), batch_size=1, reduction="mean")
    found = [engine.loss(example, model.factors()) for example in make_examples(4)]
    assert found == pytest.approx(losses, rel=1e-5)
    ids = np.arange(5, dtype=np.int64)
    masked = Example(ids=ids, labels=np.full_like(ids, IGNORED))
    assert not engine.gradient(masked, model.factors()).any()
    assert not engine.gradient(Example(ids=ids[:0], labels=ids[:0]), model.factors()).any()


@pytest.mark.parametrize(("family", "bits"), [("qwen2", 8), ("llama", 4)])
def test_rounded_weights_give_exactly_the_gradient_of_the_rounded_model(
    make_step: MakeStep, family: str, bits: int
) -> None:
    step = make_step(family, quantization=f"int{bits}", runtime="executorch")
    exact = make_step(family, runtime="executorch")
    agrees(step, step.model(), bits)
    assert step.exported.comparison.cosine >= (0.999 if bits == 8 else 0.9)
    small, large = ((one.folder / PTD).stat().st_size for one in (step, exact))
    assert small < (0.45 if bits == 8 else 0.4) * large


def test_the_base_is_a_file_of_its_own_and_nothing_tells_of_the_exporter(
    make_step: MakeStep,
) -> None:
    step = make_step("gpt2", runtime="executorch")
    model = step.model()
    names = {path.name for path in step.folder.iterdir()}
    assert names == {PTE, PTD, MANIFEST, "tokenizer.json"}
    program, base = (step.folder / PTE).read_bytes(), (step.folder / PTD).read_bytes()
    weight = model.base.model.get_parameter("transformer.wte.weight").detach().numpy()
    assert weight.tobytes() in base
    assert weight.tobytes() not in program
    for value in model.factors().values():
        assert value.tobytes() not in base + program
    assert b".py" not in program
    assert load_step(step.folder).runtime == "executorch"


def test_a_program_that_is_not_what_its_manifest_says_is_refused(
    make_step: MakeStep, tmp_path: Path
) -> None:
    step = make_step("gpt2", runtime="executorch")
    found = step.exported.manifest
    for other in (replace(found, length=8), replace(found, trained="B")):
        with pytest.raises(BaseModelMismatch, match="takes or gives"):
            ExecutorchStep(step.folder, other)
    (tmp_path / PTD).touch()
    with pytest.raises(BaseModelMismatch, match="cannot run"):
        ExecutorchStep(tmp_path, found)
    (tmp_path / PTE).write_bytes(b"no program")
    with pytest.raises(BaseModelMismatch, match="cannot run"):
        ExecutorchStep(tmp_path, found)
    (tmp_path / PTE).write_bytes((step.folder / PTE).read_bytes())
    with pytest.raises(BaseModelMismatch, match="cannot run"):
        ExecutorchStep(tmp_path, found)  # the program without its weights


def test_a_device_without_the_package_is_told_what_to_install(
    make_step: MakeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = make_step("gpt2", runtime="executorch")
    monkeypatch.setitem(sys.modules, "executorch.extension.pybindings", None)
    with pytest.raises(MissingDependency, match="executorch") as caught:
        step.engine()
    assert "fedslm[export]" in str(caught.value.hint)
    monkeypatch.setattr("client.edge.export.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="needs executorch"):
        require_exporter("executorch")
