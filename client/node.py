"""A device's runtime, built from what the device itself knows and the run's public configuration.

The run's configuration (scenario and plan, as JSON) comes from the server; data, base model and
policy come from the node's own configuration, so that a server cannot point a device at another
file. The policy is checked before the base is even loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from client.data import ClientData, Columns, file_format, read_records, split_holdout
from client.policy import ClientPolicy
from shared.config import RunConfig
from shared.configfile import parse_json
from shared.errors import SchemaMismatch
from shared.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from client.runtime import ClientRuntime

SCENARIO = "scenario"
PLAN = "plan"
DATA = "data-path"
BASE = "base-path"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """The records of one device, read from its own file.

    Attributes:
        path: the device's file.
        config: the scenario, for columns and the split.
    """

    path: Path
    config: RunConfig

    def client(self, index: int) -> ClientData:
        """Return the device's records; the index only names its random streams."""
        data = self.config.data
        columns = Columns(
            text=data.text, prompt=data.prompt, response=data.response, client=None, label=None
        )
        name = f"client-{index}"
        kind = file_format(self.path)
        records = [r for r in read_records(self.path, format=kind, columns=columns) if r.usable]
        if data.max_records is not None:
            records = records[: data.max_records]
        train, held = split_holdout(
            records, holdout=data.holdout, seed=self.config.run.seed, client=name
        )
        return ClientData(name=name, train=train, holdout=held)


def runtime_of_node(run: Mapping[str, object], node: Mapping[str, object]) -> ClientRuntime:
    """Return the process's runtime for a node, built once.

    Args:
        run: Flower's run configuration, from the server.
        node: the node's own configuration.

    Raises:
        SchemaMismatch: if the run or the node is not configured.
        PolicyRefused: if the plan or the base is not allowed on this device.
    """
    values = [run.get(SCENARIO), run.get(PLAN), node.get(DATA), node.get(BASE)]
    names = (SCENARIO, PLAN, DATA, BASE)
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value:
            msg = f"The configuration has no {name!r}."
            raise SchemaMismatch(msg, hint="Run: scenario, plan. Node: data-path, base-path.")
    policy = ClientPolicy.from_node_config(node)
    return _runtime(*(str(value) for value in values), policy)


@lru_cache(maxsize=1)
def _runtime(
    scenario: str, plan_json: str, data: str, base: str, policy: ClientPolicy
) -> ClientRuntime:
    """Check the policy, load the base and build the runtime."""
    from client.adapter import adapt
    from client.model import base_digest, load_base
    from client.runtime import ClientRuntime

    config, plan = parse_json(scenario), PrivacyPlan.from_json(plan_json)
    if plan.mode != config.privacy.mode:
        msg = f"The plan has mode={plan.mode!r}, the scenario {config.privacy.mode!r}."
        raise SchemaMismatch(msg)
    policy.check(plan, base_digest=base_digest(Path(base)))
    model = adapt(
        load_base(
            base,
            quantization=config.model.quantization,
            device=config.performance.device,
            cache_dequantized=config.performance.cache_dequantized,
        ),
        r=config.lora.r,
        alpha=config.lora.alpha,
        target_modules=config.lora.target_modules,
        dropout=config.lora.dropout,
    )
    source = LocalSource(path=Path(data), config=config)
    return ClientRuntime(config=config, plan=plan, model=model, source=source)
