"""``fedslm export step``: a folder that loads, or one clear error and no folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from client.edge.program import load_step
from client.edge.terms import at_rank, require_step_for, terms_of
from shared.errors import ConflictingSettings, InvalidValue, UsageError
from simulations.catalog import open_scenario
from simulations.cli import run
from tests.client.edge.test_training import SPEC, manifest

STEP = ["export", "step", "quickstart"]


@pytest.mark.slow
def test_the_step_of_a_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step"
    said = ["--lora", "r=2,alpha=4,target_modules=q_proj+v_proj", "--set", "data.max_length=16"]
    assert run([*STEP, "--out", str(out), *said, "--quantization", "int8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = load_step(out, digest=told["digest"])
    config = open_scenario(
        "quickstart",
        [
            "lora.r=2",
            "lora.alpha=4",
            'lora.target_modules=["q_proj","v_proj"]',
            "data.max_length=16",
        ],
    ).config
    require_step_for(config, found)
    assert (found.length, found.quantization, found.trained) == (16, "int8", "B")
    assert found.max_grad_norm == config.privacy.max_grad_norm
    assert told["cosine"] > 0.99
    assert run([*STEP, "--out", str(out)]) != 0  # it is there already


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--runtime", "tflite"], UsageError.exit_code),
        (["--lora", "rank=2"], UsageError.exit_code),
        (["--rank", "0"], InvalidValue.exit_code),
        (["--rank", "65"], InvalidValue.exit_code),
        (["--lora", "r="], UsageError.exit_code),
        (["--set", "lora.dropout=0.1"], ConflictingSettings.exit_code),
        (["--set", "model.compute_dtype=bfloat16"], ConflictingSettings.exit_code),
    ],
)
def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    assert run([*STEP, "--out", str(tmp_path / "step"), *arguments]) == code
    assert not (tmp_path / "step").exists()


def test_a_policy_whose_rounds_train_different_factors_has_a_step_without_a_clip() -> None:
    """A clip of both factors would scale one by the norm of both."""
    terms = terms_of(open_scenario("quickstart", ["aggregation.policy=rolora"]).config)
    assert (terms.trained, terms.max_grad_norm) == ("AB", None)
    one = open_scenario("quickstart", ["aggregation.policy=rolora", "run.rounds=1"]).config
    assert terms_of(one).trained == "B"


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_a_step_for_devices_of_a_smaller_rank_has_the_scale_of_the_run(variant: str) -> None:
    said = ["lora.r=4", "lora.alpha=6", f"lora.variant={variant}", "data.max_length=8"]
    ranks = ["clients.population=400", "devices.mix={pi5 = 0.5, laptop = 0.5}"]
    config = open_scenario("quickstart", [*said, *ranks, "devices.ranks={pi5 = 2}"]).config
    small = at_rank(config, 2).lora
    step = replace(manifest("B"), adapter=replace(SPEC, lora_alpha=small.alpha))
    step = replace(step, adapter=replace(step.adapter, rslora=variant == "rslora"))
    alike = config.lora.model_copy(update={"target_modules": ("m",)})
    require_step_for(config.model_copy(update={"lora": alike}), step)
    whole = open_scenario("quickstart", said).config
    with pytest.raises(ConflictingSettings, match=r"lora\.r: 4"):
        require_step_for(whole, step)


def test_a_policy_that_changes_the_base_has_no_step() -> None:
    said = ["aggregation.policy=fedex", "privacy.mode=none"]
    with pytest.raises(ConflictingSettings, match="fedex"):
        terms_of(open_scenario("quickstart", said).config)


def test_a_step_of_another_scenario_is_refused() -> None:
    config = open_scenario("quickstart", ["data.max_length=8"]).config
    with pytest.raises(ConflictingSettings, match=r"max_length.*has 8"):
        require_step_for(open_scenario("quickstart", ["data.max_length=9"]).config, manifest("B"))
    with pytest.raises(ConflictingSettings, match=r"lora\.r"):
        require_step_for(config, manifest("B"))
