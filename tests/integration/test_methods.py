"""Whole runs of IA3 and of prompts: every mode, resumed, on Flower's engine, and exact means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.losses import collate, per_sequence_losses
from shared.adaptermethod import METHODS
from shared.configfile import resolve
from shared.errors import AdapterIncompatible
from shared.lora import Factors, initial_factors
from shared.scenarioplan import plan_of
from simulations.assemble import Assembly, assemble_runtime
from simulations.simulate import Result
from tests.integration.scenario import TABLES, run_small
from tests.integration.test_modes import DISTRIBUTED, _stop_after_first_round
from tests.integration.test_schedules import SMALL

pytestmark = pytest.mark.slow

RUN = (*SMALL, "run.rounds=2", "lora.prompt_tokens=4")
EXAMPLE = ("privacy.mode=example", "clients.max_participations=2")
PLAIN = ("privacy.mode=none", "server.optimizer=mean", "aggregation.policy=fedavg")


def released(result: Result) -> Factors:
    """Return the tensors of the released adapter."""
    found: Factors = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    return found


def assembly_of(settings: tuple[str, ...]) -> Assembly:
    config = resolve(TABLES, settings, source="test").config
    return assemble_runtime(config, plan_of(config, population=6), base_dir=Path.cwd())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [(), EXAMPLE], ids=["central", "example"])
def test_a_stopped_run_ends_at_the_same_bits_and_noise_covers_all_of_it(
    mode: tuple[str, ...], method: str, tmp_path: Path
) -> None:
    settings = (*RUN, *mode, f"lora.variant={method}")
    whole = run_small(tmp_path / "whole", settings)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, settings)
    resumed = run_small(stopped, settings, resume=True)
    first = initial_factors(assembly_of(settings).model.spec, 5)
    for name, value in released(whole).items():
        np.testing.assert_array_equal(value, released(resumed)[name])
        assert (value != first[name]).all()
    assert whole.summary["lora"]["trainable_parameters"] == sum(v.size for v in first.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_secure_sum_and_codes_of_the_link_carry_it(method: str, tmp_path: Path) -> None:
    summed = (*DISTRIBUTED, "clients.population=12", "clients.cohort=8.0", "run.rounds=1")
    settings = (*RUN, f"lora.variant={method}")
    assert run_small(tmp_path / "sum", [*settings, *summed]).summary["status"] == "completed"
    coded = run_small(
        tmp_path / "coded", [*settings, *PLAIN, "link.up=int8", "link.down=delta", "run.rounds=2"]
    )
    plain = run_small(tmp_path / "plain", [*settings, *PLAIN])
    assert (
        coded.summary["bytes_up_per_client_round"] < plain.summary["bytes_up_per_client_round"] / 2
    )
    for name, value in released(plain).items():
        start = initial_factors(assembly_of((*settings, *PLAIN)).model.spec, 5)[name]
        moved = np.linalg.norm(value - start)
        assert np.linalg.norm(released(coded)[name] - value) <= 0.1 * moved


@pytest.mark.parametrize("method", METHODS)
def test_one_local_step_of_all_clients_is_a_step_on_all_texts(method: str, tmp_path: Path) -> None:
    """The mean of clients' vectors after one step is the vector of the step on the mean loss."""
    settings = (
        *RUN,
        *PLAIN,
        f"lora.variant={method}",
        "run.rounds=1",
        "clients.cohort=6.0",
        "clients.batch_size=5",  # what every client has
        "privacy.sampling_probability=1.0",
        "audit.canaries=0",
    )
    result = run_small(tmp_path / "run", settings)
    parts = assembly_of(settings)
    model, config = parts.model, parts.runtime.config
    start = initial_factors(model.spec, config.adapter_seed)
    model.load(start)
    parameters = [parameter for _, parameter in model.trainable]
    mean = torch.zeros(model.spec.size(), dtype=torch.float64)
    for index in range(6):
        train, _ = parts.runtime.examples(index)
        loss = per_sequence_losses(model.peft_model, collate(train, 0)).mean()
        found = torch.autograd.grad(loss, parameters)
        mean += torch.cat([g.reshape(-1) for g in found]).double() / 6
    moved = model.spec.flatten(released(result)) - model.spec.flatten(start)
    wanted = -config.clients.learning_rate * mean.numpy()
    assert np.linalg.norm(moved - wanted) <= 1e-4 * np.linalg.norm(wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_lowers_the_loss_goes_on_from_its_like_and_says_what_it_is(
    method: str, tmp_path: Path
) -> None:
    rate = {"ia3": 1.0, "prompt": 0.3}[method]
    settings = (
        *RUN,
        *PLAIN,
        f"lora.variant={method}",
        "clients.optimizer=adamw",
        "clients.local_steps=4",
        f"clients.learning_rate={0.05 * rate}",
        "clients.cohort=6.0",
    )
    first = run_small(tmp_path / "first", settings)
    assert first.summary["loss_after"] < first.summary["loss_before"]
    assert first.summary["lora"]["variant"] == method
    on = [*settings, "run.rounds=1", f"run.warm_start={first.folder}"]
    second = run_small(tmp_path / "second", on)
    assert second.summary["loss_before"] == pytest.approx(first.summary["loss_after"], rel=1e-5)
    other = {"ia3": "prompt", "prompt": "ia3"}[method]
    for variant in (other, "lora"):
        with pytest.raises(AdapterIncompatible):
            run_small(tmp_path / variant, [*on, f"lora.variant={variant}"])


@pytest.mark.parametrize("method", METHODS)
def test_audits_attack_it_and_those_that_need_pairs_say_so(method: str, tmp_path: Path) -> None:
    settings = [*RUN, f"lora.variant={method}", "audit.profile=smoke", "run.rounds=1"]
    result = run_small(tmp_path / "run", settings)
    said = json.loads((result.folder / "audit.json").read_text())
    assert said
    assert result.summary["status"] == "completed"


def test_personal_steps_and_momentum_have_no_pairs_either(tmp_path: Path) -> None:
    settings: list[str] = [*RUN, *PLAIN, "lora.variant=ia3", "personal.steps=2", "run.rounds=1"]
    found: Any = run_small(tmp_path / "run", settings).summary["personal"]
    assert found is not None
