"""A device's runtime, built from what the device itself knows and the run's public configuration.

The run's configuration (scenario and plan, as JSON) comes from the server; data, base model, policy
and state come from the node's own configuration, so that a server cannot point a device at another
file. The policy is read again at every message and checked before the base is even loaded.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from client.agreement import require_agreement
from client.data import ClientData, Columns, file_format, read_records, split_holdout
from client.knownruns import remember_scenario
from client.policy import ClientPolicy
from client.refusals import refusals_logged
from client.thrift import read_model_config, thrift_for
from shared.config import RunConfig
from shared.configfile import parse_json
from shared.errors import SchemaMismatch
from shared.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from client.participant import Participant

SCENARIO = "scenario"
PLAN = "plan"
DATA = "data-path"
BASE = "base-path"
POLICY = "policy-path"
STATE = "state-path"
RUNTIME = "runtime"
STEP = "step-digest"
TORCH = "torch"
_HINT = f"Run: {SCENARIO}, {PLAN}. Node: {DATA}, {BASE}, {POLICY}, {STATE}."


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
            text=data.text,
            prompt=data.prompt,
            response=data.response,
            label=data.label if self.config.task.classifies else None,
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


def runtime_of_node(run: Mapping[str, object], node: Mapping[str, object]) -> Participant:
    """Return the process's runtime for a node, built once for a run and a policy.

    Args:
        run: Flower's run configuration, from the server.
        node: the node's own configuration: paths of data, base model, policy and state folder;
            with another ``runtime`` than "torch" the base is an exported step, pinned by
            ``step-digest``; its manifest says what runs it.

    Raises:
        SchemaMismatch: if the run or the node is not configured, or plan and scenario disagree.
        PolicyRefused: if the run is not allowed on this device, or it has no policy.
        ConfigError: if the policy or the scenario is wrong.
    """
    with refusals_logged():
        scenario, plan = (_field(run, name) for name in (SCENARIO, PLAN))
        data, base, state = (_field(node, name) for name in (DATA, BASE, STATE))
        policy = ClientPolicy.load(Path(_field(node, POLICY)))
        step = None
        if node.get(RUNTIME, TORCH) != TORCH:
            step = _field(node, STEP)
        return _runtime(scenario, plan, data, base, state, policy, step)


def _field(config: Mapping[str, object], name: str) -> str:
    """Return a setting that must be there."""
    value = config.get(name)
    if not isinstance(value, str) or not value:
        msg = f"The configuration has no {name!r}."
        raise SchemaMismatch(msg, hint=_HINT)
    return value


# The runtime of the process, under what it was built from; one at most.
_BUILT: dict[tuple[str, str, str, str, str, ClientPolicy, str | None], Participant] = {}


def _runtime(
    scenario: str,
    plan_json: str,
    data: str,
    base: str,
    state: str,
    policy: ClientPolicy,
    step: str | None,
) -> Participant:
    """Return the runtime for a run and a policy; the one before goes first.

    Two bases at once would not fit on a small device.
    """
    key = (scenario, plan_json, data, base, state, policy, step)
    if key not in _BUILT:
        _BUILT.clear()
        gc.collect()
        build = _build if step is None else partial(_build_edge, digest=step)
        _BUILT[key] = build(scenario, plan_json, data, Path(base), Path(state), policy)
    return _BUILT[key]


def _read(scenario: str, plan_json: str) -> tuple[RunConfig, PrivacyPlan]:
    """Read a run's configuration."""
    return parse_json(scenario), PrivacyPlan.from_json(plan_json)


def _require_allowed(
    config: RunConfig, plan: PrivacyPlan, policy: ClientPolicy, state: Path, base_digest: str
) -> None:
    """Refuse a run that the policy does not allow, or whose plan is not its scenario's."""
    policy.check(plan, config, base_digest=base_digest)
    require_agreement(config, plan)
    remember_scenario(state, config)


def _build(
    scenario: str, plan_json: str, data: str, base: Path, state: Path, policy: ClientPolicy
) -> Participant:
    """Check the policy, load the base and build the runtime."""
    import torch

    from client.basedigest import base_digest
    from client.guard import GuardedRuntime
    from client.keyring import DeviceKeyring
    from client.taskmodel import load_adapted

    config, plan = _read(scenario, plan_json)
    _require_allowed(config, plan, policy, state, base_digest(base))
    # After the comparisons: the section is the device's own, and in no digest.
    thrift = thrift_for(config, read_model_config(base), cuda=torch.cuda.is_available())
    config = config.model_copy(update={"performance": thrift.performance})
    secure = policy.secure_aggregation
    model = load_adapted(config, str(base))
    if thrift.checkpointing:
        model.enable_checkpointing()
    return GuardedRuntime(
        config=config,
        plan=plan,
        model=model,
        source=LocalSource(path=Path(data), config=config),
        policy=policy,
        state=state,
        keyring=None if secure is None else DeviceKeyring(state, secure),
    )


def _build_edge(
    scenario: str,
    plan_json: str,
    data: str,
    base: Path,
    state: Path,
    policy: ClientPolicy,
    *,
    digest: str,
) -> Participant:
    """Check the step and the policy, and build the runtime of a device without torch."""
    from client.edge.program import load_step
    from client.edge.runtime import edge_runtime
    from client.keyring import DeviceKeyring

    config, plan = _read(scenario, plan_json)
    step = load_step(base, digest=digest)
    _require_allowed(config, plan, policy, state, step.base_digest)
    secure = policy.secure_aggregation
    return edge_runtime(
        base,
        step,
        config=config,
        plan=plan,
        source=LocalSource(path=Path(data), config=config),
        policy=policy,
        state=state,
        keyring=None if secure is None else DeviceKeyring(state, secure),
    )
