"""The guard of a device's runtime: shares, empty shares, small cohorts, clips that move."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.charges import CLIENT
from client.guard import GuardedRuntime
from client.node import LocalSource
from client.policy import ClientPolicy
from client.state import DeviceState
from shared.config import RunConfig
from shared.errors import PolicyRefused, SchemaMismatch, SensitivityError
from shared.scenarioplan import plan_of
from shared.wire import Instruction
from simulations.assemble import load_model
from simulations.corpora import private_records
from tests.client.device import CLIENT as BUDGET
from tests.client.device import scenario, write_policy

pytestmark = pytest.mark.slow

DISTRIBUTED = {
    "honest_fraction": 0.8,
    "survivor_fraction": 0.9,
    "min_cohort": 4,
    "noise_multiplier": 4.0,
}


def guarded(folder: Path, mode: str, said: dict[str, Any], **policy: Any) -> GuardedRuntime:
    """Return a device's runtime on the embedded model."""
    config: RunConfig = scenario(mode, **said)
    rows = [{"note": text} for text in private_records(0, seed=5, records=4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "notes.jsonl").write_text(text, encoding="utf-8")
    return GuardedRuntime(
        config=config,
        plan=plan_of(config, population=10),
        model=load_model(config, base_dir=folder),
        source=LocalSource(path=folder / "notes.jsonl", config=config),
        policy=ClientPolicy.load(write_policy(folder, mode, **policy)),
        state=folder / "state",
    )


def instruction(runtime: GuardedRuntime, number: int = 1, **changes: Any) -> Instruction:
    size = runtime.model.spec.size(runtime.config.trained_kinds)
    values: dict[str, Any] = {
        "run_id": "run",
        "server_round": number,
        "config_digest": runtime.digests[0],
        "plan_digest": runtime.digests[1],
        "vector": np.zeros(size, dtype=np.float32),
    }
    return Instruction(**{**values, **changes})


def releases(folder: Path) -> float:
    with DeviceState(folder / "state") as state:
        return sum(spent.releases for spent in state.spent() if spent.subject == CLIENT)


@pytest.fixture
def device(tmp_path: Path) -> GuardedRuntime:
    return guarded(tmp_path, "client-distributed", DISTRIBUTED)


def test_a_share_is_charged_and_given_once(device: GuardedRuntime, tmp_path: Path) -> None:
    asked = instruction(device)
    share = device.train_share(0, asked, cohort=5)
    assert share.words.size == asked.vector.size
    assert releases(tmp_path) == 1.0
    with pytest.raises(PolicyRefused, match="answered before"):
        device.train_share(0, asked, cohort=5)
    assert releases(tmp_path) == 1.0


def test_an_empty_share_costs_nothing(device: GuardedRuntime, tmp_path: Path) -> None:
    device.train_share(0, instruction(device, empty=True), cohort=5)
    assert releases(tmp_path) == 0.0
    with pytest.raises(PolicyRefused, match="answered before"):
        device.train_share(0, instruction(device), cohort=5)


def test_an_announced_cohort_may_be_too_small(device: GuardedRuntime, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match="cohort has 3 clients, this device allows at least 4"):
        device.train_share(0, instruction(device), cohort=3)
    assert releases(tmp_path) == 0.0


def test_no_clear_update_leaves_in_distributed_mode(device: GuardedRuntime, tmp_path: Path) -> None:
    with pytest.raises(SensitivityError):
        device.train(0, instruction(device))
    assert releases(tmp_path) == 1.0


def test_a_device_that_promises_no_secure_sum_gives_no_share(tmp_path: Path) -> None:
    device = guarded(tmp_path, "client-central", {})
    with pytest.raises(PolicyRefused, match="this device allows none"):
        device.train_share(0, instruction(device), cohort=5)
    assert releases(tmp_path) == 0.0


def test_a_clear_update_is_never_taken_for_an_empty_one(tmp_path: Path) -> None:
    """`empty` makes a share cheap; an update in the clear touches the records all the same."""
    device = guarded(tmp_path, "client-central", {})
    device.train(0, instruction(device, empty=True))
    assert releases(tmp_path) == 1.0


@pytest.mark.parametrize("clip", [1e-9, 1e9, float("nan"), float("inf")])
def test_a_clip_moves_only_as_far_as_the_plan_says(tmp_path: Path, clip: float) -> None:
    said = {"clipping_quantile": 0.5, "count_noise_stddev": 2.0}
    device = guarded(tmp_path, "client-central", said)
    with pytest.raises(SchemaMismatch, match="clipping_norm="):
        device.train(0, instruction(device, clipping_norm=clip))
    assert releases(tmp_path) == 0.0
    device.train(0, instruction(device, clipping_norm=0.7))
    assert releases(tmp_path) == 1.0


def test_correlated_noise_is_paid_once_and_keeps_its_distance(tmp_path: Path) -> None:
    device = guarded(tmp_path, "client-central", {"mechanism": "correlated"})
    terms = device.plan.correlated
    assert terms is not None
    assert terms.min_separation == 2
    device.train(0, instruction(device, 1))
    with pytest.raises(PolicyRefused, match="too near round 1"):
        device.train(0, instruction(device, 2))
    device.train(0, instruction(device, 3))
    assert releases(tmp_path) == 1.0


def test_no_loss_leaves_a_device(device: GuardedRuntime) -> None:
    with pytest.raises(PolicyRefused, match="Held-out losses"):
        device.measure(0, instruction(device))


def test_seeded_shares_repeat_only_for_the_same_question(tmp_path: Path) -> None:
    """Another cohort, or another adapter, under the same noise would give the noise away."""
    said = {**DISTRIBUTED, "noise_source": "seeded-simulation"}
    device = guarded(tmp_path, "client-distributed", said, seeded_noise=True, client=BUDGET)
    asked = instruction(device)
    first = device.train_share(0, asked, cohort=5)
    again = device.train_share(0, asked, cohort=5)
    assert np.array_equal(first.words, again.words)
    assert releases(tmp_path) == 1.0
    with pytest.raises(PolicyRefused, match="answered before"):
        device.train_share(0, asked, cohort=6)
    with pytest.raises(PolicyRefused, match="answered before"):
        device.train_share(0, replace(asked, empty=True), cohort=5)
