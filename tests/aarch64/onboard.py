"""What the board is asked to compute: sent there as text, and run here too, to compare.

``gradients STEP ROWS OUT`` runs an exported step on rows of tokens and writes what it gave;
``answer DEVICE STEP OUT`` answers a round and writes the update, as the ClientApp of a device does;
``epsilon`` prints what the accountants make of some histories. Nothing here needs torch.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def gradients(step: str, rows: str, out: str) -> None:
    """Run every row through the program; loss, norm and gradients as it gives them."""
    from client.edge.engine import OnnxStep
    from client.edge.program import load_step
    from client.examples import Example

    folder = Path(step)
    engine = OnnxStep(folder, load_step(folder))
    said = load_file(rows)
    sizes = [(factor.name, factor.shape) for factor in engine.manifest.adapter.factors]
    factors, start = {}, 0
    for name, shape in sizes:
        size = int(np.prod(shape))
        factors[name] = said["adapter"][start : start + size].reshape(shape)
        start += size
    given = []
    for ids in said["ids"]:
        found = engine._run(None, Example(ids=ids, labels=ids), factors)
        given.append(np.concatenate([np.asarray(x, dtype=np.float64).reshape(-1) for x in found]))
    save_file({"given": np.stack(given)}, out)


def answer(device: str, step: str, out: str) -> None:
    """Answer the round that lies in a device's folder."""
    from flwr.app import ArrayRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from client.app import app
    from client.edge.program import load_step
    from shared.configfile import parse_json
    from shared.privacy.plan import PrivacyPlan
    from shared.wire import Instruction, encode_instruction

    folder, manifest = Path(device), load_step(Path(step))
    scenario = (folder / "scenario.json").read_text(encoding="utf-8")
    plan = (folder / "plan.json").read_text(encoding="utf-8")
    config = parse_json(scenario)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    instruction = Instruction(
        run_id="run",
        server_round=1,
        config_digest=config.digest(),
        plan_digest=PrivacyPlan.from_json(plan).digest(),
        vector=np.zeros(manifest.adapter.size(config.trained_kinds), dtype=np.float32),
    )
    node: dict[str, bool | float | int | str] = {
        "partition-id": 0,
        "data-path": str(folder / "notes.jsonl"),
        "base-path": step,
        "policy-path": str(folder / "policy.toml"),
        "state-path": str(Path(out).with_suffix(".state")),
        "runtime": "onnx",
        "step-digest": manifest.digest,
    }
    context = Context(
        run_id=1,
        node_id=1,
        node_config=node,
        state=RecordDict(),
        run_config={"scenario": scenario, "plan": plan},
    )
    reply = app(Message(encode_instruction(instruction), 1, "train", group_id="1"), context).content
    record = reply["adapter"]
    if not isinstance(record, ArrayRecord):
        raise SystemExit(str(reply))
    save_file({"given": record["vector"].numpy()}, out)


def epsilon() -> None:
    """Print the machine, and epsilon of histories by both accountants."""
    from shared.privacy.accountant import AccountantName, epsilon_of
    from shared.privacy.events import GaussianEvent, NeighboringRelation

    names: tuple[AccountantName, ...] = ("pld", "rdp")
    found = [
        epsilon_of(
            GaussianEvent(noise_multiplier=noise, sampling_probability=rate, count=count),
            delta=1e-5,
            relation=relation,
            accountant=name,
        )
        for name in names
        for relation in NeighboringRelation
        for noise, rate, count in ((1.0, 0.01, 1000), (4.0, 1.0, 30), (0.8, 0.2, 10))
    ]
    print(json.dumps([platform.machine(), *found]))  # noqa: T201


if __name__ == "__main__":
    work: dict[str, Callable[..., None]] = {
        "gradients": gradients,
        "answer": answer,
        "epsilon": epsilon,
    }
    work[sys.argv[1]](*sys.argv[2:])
