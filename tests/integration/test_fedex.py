"""Exact means in whole runs: both engines, the released adapter in PEFT, and what audits read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file

from client.adapter import adapt
from client.evaluation import evaluate
from client.model import frozen_digest, load_base
from server.release import Release, Releaser
from shared.errors import SchemaMismatch, UnsupportedModel
from shared.lora import initial_factors
from shared.residual import Residual
from simulations.auditing.dossier import open_dossier
from simulations.basepath import ASSETS
from simulations.simulate import Result
from tests.integration.scenario import run_small

pytestmark = pytest.mark.slow

FEDEX = (
    "aggregation.policy=fedex",
    "privacy.mode=none",
    "audit.canaries=0",
    "server.optimizer=mean",
    "clients.local_steps=2",
    "clients.learning_rate=0.3",
    "run.rounds=2",
)


def products(result: Result) -> dict[str, np.ndarray]:
    """Return the dense product of each layer of the released adapter."""
    adapter = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    return {
        name: factor @ adapter[name.replace("lora_B", "lora_A")]
        for name, factor in adapter.items()
        if "lora_B" in name
    }


def apart(one: Result, other: Result) -> float:
    a, b = products(one), products(other)
    length = sum(float(np.square(v).sum()) for v in b.values())
    assert length > 0
    return float(np.sqrt(sum(float(np.square(a[n] - b[n]).sum()) for n in b) / length))


@pytest.fixture(scope="module", name="exact")
def _exact(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_small(tmp_path_factory.mktemp("fedex") / "run", FEDEX)


def test_it_learns_and_says_how_wide_the_released_adapter_is(exact: Result) -> None:
    summary = exact.summary
    assert summary["loss_after"] < summary["loss_before"]
    said = json.loads((exact.folder / "adapter" / "adapter_config.json").read_text())
    assert said["r"] == summary["released_r"] > 2
    assert summary["bytes_down_per_client_round"] > summary["bytes_up_per_client_round"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_computes_what_clients_had(exact: Result) -> None:
    """The oracle is PEFT on a fresh base; the losses are those that clients reported."""
    losses = json.loads((exact.folder / "evaluation.json").read_text())["after"]
    with open_dossier(exact.folder, base_dir=Path.cwd()) as dossier:
        model, runtime = dossier.assembly.model, dossier.assembly.runtime
        base = load_base(str(ASSETS / "demo"))
        theirs = PeftModel.from_pretrained(base.model, exact.folder / "adapter").eval()
        tokens = torch.tensor([[5, 17, 40, 8, 99, 3]])
        with torch.no_grad():
            ours = model.peft_model(input_ids=tokens).logits
            np.testing.assert_allclose(
                ours.numpy(), theirs(input_ids=tokens).logits.numpy(), atol=1e-4
            )
            with model.plain_peft():
                again = model.peft_model(input_ids=tokens).logits
            np.testing.assert_allclose(again.numpy(), ours.numpy(), atol=1e-4)
            # What audits compare with is the base itself, without what lies beneath.
            with theirs.disable_adapter():
                plain = theirs(input_ids=tokens).logits
            with model.disabled():
                assert model.beneath.current is None
                bare = model.peft_model(input_ids=tokens).logits
            np.testing.assert_allclose(bare.numpy(), plain.numpy(), atol=1e-5)
            assert np.abs(ours.numpy() - plain.numpy()).max() > 0.01
        assert model.beneath.current is not None
        name, loss = next(iter(losses.items()))
        _, held_out = runtime.examples(int(name.removeprefix("client-")))
        assert evaluate(model, held_out, batch_size=8).loss == pytest.approx(loss, rel=1e-4)


def test_groups_change_rounding_alone(exact: Result, tmp_path: Path) -> None:
    alone = run_small(tmp_path / "alone", [*FEDEX, "performance.cohort_batch=1"])
    assert apart(alone, exact) < 1e-3


def test_a_killed_run_goes_on_bit_for_bit(
    exact: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Releaser.release

    def dying(self: Releaser, messenger: Any, instruction: Any, cohort: Any) -> Release:
        if instruction.server_round == 2:
            raise KeyboardInterrupt
        return real(self, messenger, instruction, cohort)

    monkeypatch.setattr(Releaser, "release", dying)
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path / "run", FEDEX)
    monkeypatch.undo()
    resumed = run_small(tmp_path / "run", FEDEX, resume=True)
    one, two = (load_file(r.folder / "checkpoint.safetensors") for r in (resumed, exact))
    assert set(one) == set(two)
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])


def test_noised_updates_go_through_the_same_server(tmp_path: Path) -> None:
    result = run_small(tmp_path / "run", [*FEDEX, "privacy.mode=example", "run.rounds=1"])
    assert any("fedex multiplies" in text for text in result.summary["warnings"])


def test_the_base_comes_back_bit_for_bit() -> None:
    base = load_base(str(ASSETS / "demo"))
    model = adapt(base, r=2, alpha=8.0, target_modules="all-linear")
    model.load(initial_factors(model.spec, 1))
    before = frozen_digest(model.peft_model)
    rng = np.random.default_rng(3)

    def beneath(k: int) -> Residual:
        widths = [(b.shape[0], a.shape[1]) for a, b in model.spec.pairs()]
        return Residual.of(
            [(rng.standard_normal((o, k)), rng.standard_normal((k, i))) for o, i in widths]
        )

    one = beneath(3)
    model.beneath.put(one)
    changed = frozen_digest(model.peft_model)
    assert changed != before
    with model.beneath.removed():
        assert frozen_digest(model.peft_model) == before
    assert frozen_digest(model.peft_model) == changed
    model.beneath.put(beneath(1))
    model.beneath.put(one)
    assert frozen_digest(model.peft_model) == changed
    with pytest.raises(SchemaMismatch):
        model.beneath.put(Residual((1,), np.zeros(4, dtype=np.float32)))
    assert frozen_digest(model.peft_model) == changed
    model.beneath.put(None)
    assert frozen_digest(model.peft_model) == before


def test_a_base_that_would_round_it_away_is_refused() -> None:
    base = load_base(str(ASSETS / "demo"))
    for parameter in base.model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model = adapt(base, r=1, alpha=1.0, target_modules="all-linear")
    pairs = [(np.ones((b.shape[0], 1)), np.ones((1, a.shape[1]))) for a, b in model.spec.pairs()]
    with pytest.raises(UnsupportedModel):
        model.beneath.put(Residual.of(pairs))
