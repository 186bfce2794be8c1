"""A device without torch answers the rounds that one with torch answers, with the same adapter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.edge.program import BASE as BASE_FILE
from client.fleet.child import Child
from client.fleet.limits import DEFAULT_LIMITS
from shared.wire import Instruction
from tests.client.device import EXAMPLE, write_policy
from tests.integration.device import ask, code, demo_digest, make_device, make_round, vector_of
from tests.integration.edgestep import edge_scenario, exported, on_the_edge
from tests.integration.test_fleet_worker import ask as ask_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEEDED: dict[str, Any] = {"noise_source": "seeded-simulation"}


@pytest.mark.parametrize(
    ("mode", "runtime"),
    [("example", "onnx"), ("client-central", "onnx"), ("example", "executorch")],
)
def test_the_update_is_that_of_torch_for_the_same_noise(
    tmp_path: Path, mode: str, runtime: str
) -> None:
    config = edge_scenario(mode, **(SEEDED if mode == "example" else {}))
    asked = make_round(mode, config=config)
    replies = []
    for name in ("torch", runtime):
        (tmp_path / name).mkdir()
        device = make_device(tmp_path / name, mode, seeded_noise=True)
        device = on_the_edge(device, name) if name == runtime else device
        reply = ask(device, asked)
        assert code(reply) == ""
        replies.append(vector_of(reply))
        charged = device.releases("device/example" if mode == "example" else "device/client")
        assert charged == (2.0 if mode == "example" else 1.0)
        assert code(ask(device, asked.saying(config_digest="0" * 64))) == "schema-mismatch"
    truth, found = replies
    assert np.linalg.norm(truth) > 0
    assert np.linalg.norm(found - truth) <= 1e-4 * np.linalg.norm(truth)


def test_policy_and_ledger_are_those_of_every_device(tmp_path: Path) -> None:
    device = on_the_edge(make_device(tmp_path))
    config = edge_scenario("example")
    assert code(ask(device, make_round(config=config))) == ""
    before = device.releases()
    assert code(ask(device, make_round(config=config))) == "policy-refused"  # answered before
    assert device.releases() == before
    floor = {**EXAMPLE, "min_noise_multiplier": 50.0}
    write_policy(tmp_path, base_models=[demo_digest()], example=floor)
    assert code(ask(device, make_round(config=config, number=2))) == "policy-refused"
    write_policy(tmp_path, base_models=["0" * 64])
    assert code(ask(device, make_round(config=config, number=2))) == "policy-refused"
    assert device.releases() == before


def test_a_step_that_was_exchanged_trains_nothing(tmp_path: Path) -> None:
    honest = on_the_edge(make_device(tmp_path))
    folder = tmp_path / "step"
    shutil.copytree(exported()[0], folder)
    data = bytearray((folder / BASE_FILE).read_bytes())
    data[100] ^= 1
    (folder / BASE_FILE).write_bytes(data)
    asked = make_round(config=edge_scenario("example"))
    node = {**honest.node(), "base-path": str(folder)}
    assert code(ask(honest, asked, node=node)) == "base-model-mismatch"
    node = {**honest.node(), "step-digest": "0" * 64}
    assert code(ask(honest, asked, node=node)) == "base-model-mismatch"
    node = {**honest.node(), "step-digest": ""}
    assert code(ask(honest, asked, node=node)) == "schema-mismatch"
    other = edge_scenario("example")
    other = other.model_copy(update={"data": other.data.model_copy(update={"max_length": 16})})
    assert code(ask(honest, make_round(config=other))) == "conflicting-settings"
    assert honest.releases() == 0.0


def test_a_secure_sum_takes_the_same_share(tmp_path: Path) -> None:
    """What is shared is a rounding of the clipped update and noise; both come from the seed."""
    from client.edge.engine import OnnxStep
    from client.edge.program import TOKENIZER
    from client.edge.runtime import EdgeRuntime
    from client.edge.tokens import StepTokenizer
    from client.node import LocalSource
    from client.runtime import ClientRuntime
    from shared.scenarioplan import plan_of
    from simulations.assemble import load_model

    said = {"honest_fraction": 0.8, "survivor_fraction": 0.9, "min_cohort": 4}
    config = edge_scenario("client-distributed", noise_multiplier=4.0, **said, **SEEDED)
    plan = plan_of(config, population=10)
    device = make_device(tmp_path)
    source = LocalSource(path=device.folder / "notes.jsonl", config=config)
    model = load_model(config, base_dir=tmp_path)
    torched = ClientRuntime(config=config, plan=plan, model=model, source=source)
    folder, manifest = exported()
    edge = EdgeRuntime(
        config=config,
        plan=plan,
        engine=OnnxStep(folder, manifest),
        tokenizer=StepTokenizer(folder / TOKENIZER, manifest),
        source=source,
    )
    asked = Instruction(
        run_id="run",
        server_round=1,
        config_digest=torched.digests[0],
        plan_digest=torched.digests[1],
        vector=np.zeros(torched.dimension, dtype=np.float32),
    )
    words = [r.train_share(0, asked, cohort=5).words.astype(np.int64) for r in (torched, edge)]
    far = np.abs(words[0] - words[1])
    assert words[0].any()
    assert far.max() <= 1  # a number at the border of two grid points
    assert np.mean(far > 0) < 0.01


def test_the_client_app_trains_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    device = on_the_edge(make_device(tmp_path))
    asked = make_round(config=edge_scenario("example"))
    (tmp_path / "scenario.json").write_text(asked.scenario, encoding="utf-8")
    (tmp_path / "plan.json").write_text(asked.plan, encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "tests.integration.edgeprocess", str(tmp_path), str(device.base)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == ["answered", str(asked.instruction.vector.size), "[]"]
    assert device.releases() == 2.0


def test_the_nodes_worker_answers_over_its_pipe(tmp_path: Path) -> None:
    device = on_the_edge(make_device(tmp_path))
    child = Child(limits=DEFAULT_LIMITS)
    try:
        asked = make_round(config=edge_scenario("example"))
        reply = ask_worker(child, device, asked, seconds=240.0)
    finally:
        child.end()
    assert code(reply) == ""
    assert vector_of(reply).any()
    assert device.releases() == 2.0
