"""Clients that keep their B: every mode, both engines, killed and resumed, measured each alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.evaluation import evaluate
from client.losses import collate, per_sequence_losses
from client.ownfactors import FOLDER
from server.release import Release, Releaser
from shared.configfile import resolve
from shared.lora import initial_factors
from shared.scenarioplan import plan_of
from simulations.assemble import Assembly, assemble_runtime
from simulations.simulate import Result
from tests.integration.scenario import TABLES, run_small
from tests.integration.test_policies import DISTRIBUTED

pytestmark = pytest.mark.slow

SHARE = (
    "aggregation.policy=fedavg",
    "aggregation.share=A",
    "audit.canaries=0",
    "clients.learning_rate=0.1",
    "clients.local_steps=2",
)
PLAIN = (*SHARE, "privacy.mode=none", "server.optimizer=mean")


def assembly_of(settings: tuple[str, ...], population: int) -> Assembly:
    config = resolve(TABLES, settings, source="test").config
    plan = plan_of(config, population=population)
    return assemble_runtime(config, plan, base_dir=Path.cwd())


def state(result: Result) -> dict[str, np.ndarray]:
    """Return the shared A and every client's newest B."""
    found = {"A": load_file(result.folder / "checkpoint.safetensors")["vector"]}
    for path in (result.folder / FOLDER).iterdir():
        rounds = load_file(path)
        found[path.stem] = rounds[max(rounds, key=int)]
    return found


def assert_same(one: Result, other: Result) -> None:
    mine, theirs = state(one), state(other)
    assert set(mine) == set(theirs)
    for name, vector in mine.items():
        np.testing.assert_array_equal(vector, theirs[name])


@pytest.fixture(scope="module", name="plain")
def _plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_small(tmp_path_factory.mktemp("plain") / "run", PLAIN)


def test_only_a_leaves_and_each_client_has_another_b(plain: Result) -> None:
    found = state(plain)
    a = found.pop("A")
    assert abs(plain.summary["bytes_up_per_client_round"] - 4 * a.size) < 400
    assert abs(plain.summary["bytes_down_per_client_round"] - 4 * a.size) < 1000
    assert len(found) > 3
    assert len({vector.tobytes() for vector in found.values()}) == len(found)
    home = plain.folder / FOLDER
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert plain.summary["loss_after"] < plain.summary["loss_before"]
    assert any("a B of zeros" in text for text in plain.summary["warnings"])


def test_the_released_adapter_has_the_shared_a_and_no_b(plain: Result) -> None:
    adapter = load_file(plain.folder / "adapter" / "adapter_model.safetensors")
    assert all(not v.any() for name, v in adapter.items() if "lora_B" in name)
    manifest = json.loads((plain.folder / "adapter" / "fedslm.json").read_text())
    assert manifest["kept_by_clients"] == "B"


def test_each_client_is_measured_with_its_own_b(plain: Result) -> None:
    """The oracle puts A and B together itself, and computes by PEFT's forward."""
    assembly = assembly_of(PLAIN, 12)
    model, found = assembly.model, state(plain)
    losses = json.loads((plain.folder / "evaluation.json").read_text())["after"]
    own = [name for name in losses if name in found][:3]
    assert len(own) == 3
    for name in own:
        model.load_vector(found["A"], "A")
        model.load_vector(found[name], "B")
        _, held_out = assembly.runtime.examples(int(name.removeprefix("client-")))
        with model.plain_peft():
            expected = evaluate(model, held_out, batch_size=8).loss
        assert losses[name] == pytest.approx(expected, rel=1e-5)


def test_one_client_alone_is_centralised_training(tmp_path: Path) -> None:
    """Three rounds of two steps on everything are six steps of SGD on both factors."""
    # The twin of DP-SGD: everything is in each step, and the public divisor is the batch size.
    alone = (
        *PLAIN,
        "clients.population=1",
        "clients.cohort=1.0",
        "clients.batch_size=4",
        "privacy.sampling_probability=1.0",
    )
    found = state(run_small(tmp_path / "run", alone))
    assembly = assembly_of(alone, 1)
    model = assembly.model
    model.load(initial_factors(model.spec, 5))
    model.set_trainable("AB")
    examples, _ = assembly.runtime.examples(0)
    batch = collate(examples, int(model.base.tokenizer.pad_token_id or 0))
    parameters = [parameter for _, parameter in model.trainable]
    with model.plain_peft():
        for _ in range(6):
            loss = per_sequence_losses(model.peft_model, batch).sum() / 4
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(0.1 * gradient)
    for kind, name in (("A", "A"), ("B", "client-0")):
        np.testing.assert_allclose(found[name], model.read_vector(kind), atol=1e-5)


def test_a_run_that_was_killed_goes_on_bit_for_bit(
    plain: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in round 3 after every client had answered, and so had moved its B."""
    real = Releaser.release

    def dying(self: Releaser, messenger: Any, instruction: Any, cohort: Any) -> Release:
        found = real(self, messenger, instruction, cohort)
        if instruction.server_round == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Releaser, "release", dying)
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path / "run", PLAIN)
    monkeypatch.undo()
    resumed = run_small(tmp_path / "run", PLAIN, resume=True)
    assert_same(resumed, plain)
    assert resumed.summary["client_losses"] == plain.summary["client_losses"]


@pytest.mark.parametrize(
    "settings",
    [(), DISTRIBUTED, ("privacy.mode=example",)],
    ids=["central", "distributed", "example"],
)
def test_every_private_mode_runs_and_says_what_is_released(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    result = run_small(tmp_path / "run", [*SHARE, "run.rounds=2", *settings])
    assert result.summary["share"] == "A"
    found = state(result)
    assert np.isfinite(found["A"]).all()
    assert sum(vector.any() for vector in found.values()) > 1


def test_b_is_trained_by_noised_steps_under_example(tmp_path: Path) -> None:
    """With noise far above every clipped sum, B moves by that noise alone.

    Noise of standard deviation ``lr z C / batch`` a step, over two steps; the empirical one of the
    10^4 coordinates is within 4 % of it but for a false alarm below 1e-7 (chi-square).
    """
    loud = (
        *SHARE,
        "privacy.mode=example",
        "privacy.noise_multiplier=20.0",
        "run.rounds=1",
    )
    tables: dict[str, Any] = {**TABLES, "privacy": {**TABLES["privacy"]}}
    del tables["privacy"]["epsilon"]
    config = resolve(tables, loud, source="test").config
    assembly = assemble_runtime(config, plan_of(config, population=12), base_dir=tmp_path)
    runtime = assembly.runtime
    from shared.wire import Instruction

    vector = assembly.model.spec.flatten(initial_factors(assembly.model.spec, 5), "A")
    digests = runtime.digests
    told = Instruction(
        run_id="r", server_round=1, config_digest=digests[0], plan_digest=digests[1], vector=vector
    )
    update = runtime.train(0, told)
    assert update.vector.size == vector.size
    runtime.remember_in(tmp_path)  # forgets: what follows starts from zeros again
    runtime.train(0, told)
    own = load_file(tmp_path / FOLDER / "client-0.safetensors")["1"]
    expected = 0.1 * 20.0 * 0.5 / 4 * np.sqrt(2)
    assert own.size > 5000
    assert own.std() == pytest.approx(expected, rel=0.04)
    assert update.vector.std() == pytest.approx(expected, rel=0.04)
