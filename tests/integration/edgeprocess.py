"""A process in which the real ClientApp answers a round and torch cannot be imported.

``python -m tests.integration.edgeprocess DEVICE STEP``: prints "answered", how many numbers the
update has, and which blocked packages were loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.client.edge.untorched import BLOCKED, Wall


def main(folder: Path, step: Path) -> None:
    """Answer a round and print."""
    sys.meta_path.insert(0, Wall())

    import numpy as np
    from flwr.app import ArrayRecord, Context, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from client.app import app
    from client.edge.program import load_step
    from shared.configfile import parse_json
    from shared.privacy.plan import PrivacyPlan
    from shared.wire import Instruction, encode_instruction

    scenario = (folder / "scenario.json").read_text(encoding="utf-8")
    plan_json = (folder / "plan.json").read_text(encoding="utf-8")
    config, plan, manifest = parse_json(scenario), PrivacyPlan.from_json(plan_json), load_step(step)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
    instruction = Instruction(
        run_id="run",
        server_round=1,
        config_digest=config.digest(),
        plan_digest=plan.digest(),
        vector=np.zeros(manifest.adapter.size(config.trained_kinds), dtype=np.float32),
    )
    context = Context(
        run_id=1,
        node_id=1,
        node_config={
            "partition-id": 0,
            "data-path": str(folder / "notes.jsonl"),
            "base-path": str(step),
            "policy-path": str(folder / "policy.toml"),
            "state-path": str(folder / "state"),
            "runtime": "onnx",
            "step-digest": manifest.digest,
        },
        state=RecordDict(),
        run_config={"scenario": scenario, "plan": plan_json},
    )
    message = Message(encode_instruction(instruction), 1, "train", group_id="1")
    reply = app(message, context).content
    record = reply["adapter"]
    size = record["vector"].numpy().size if isinstance(record, ArrayRecord) else 0
    found = {name.split(".")[0] for name in sys.modules} & BLOCKED
    print("answered", size, sorted(found))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
