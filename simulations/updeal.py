"""What ``fedslm up`` deals out: a scenario for real nodes, their records, their policies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.charges import Budget, client_charge, example_charge
from client.data import ClientData, Record
from client.node import LocalSource
from server.timing import refuse_in_fleet
from shared.attackrules import refuse_attack
from shared.errors import UsageError
from shared.privacy.accountant import relation_of
from shared.privacy.events import PrivacyUnit
from shared.privatefiles import replace_private
from simulations.catalog import open_scenario
from simulations.dataset import FederatedDataset, require_index

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.configfile import ResolvedConfig
    from shared.privacy.plan import PrivacyPlan

RECORDS = "records.jsonl"
_UNBOUNDED = 1e6
_MANY = 1_000_000
_TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetScenario:
    """A scenario as a fleet of some nodes can run it.

    Attributes:
        resolved: the scenario.
        notes: what was changed, in sentences.
    """

    resolved: ResolvedConfig
    notes: tuple[str, ...]


def fleet_scenario(
    name: str, overrides: Sequence[str], *, nodes: int, rounds: int | None
) -> FleetScenario:
    """Open a scenario and change what real nodes cannot do as a simulation does it.

    Args:
        name: a built-in scenario, or the path of a TOML file.
        overrides: the person's own ``SECTION.KEY=VALUE``.
        nodes: how many clients there are.
        rounds: how many rounds; None for the scenario's own number.

    Raises:
        UsageError: for mode client-distributed, which needs keys that a first look does not deal.
        ConflictingSettings: for what only a simulation can do: attackers, a clock.
        ConfigError: for a scenario that is wrong.
    """
    # Some scenarios need a population to be valid at all; which one does not matter yet.
    config = open_scenario(name, [*overrides, f"clients.population={_MANY}"]).config
    refuse_attack(config)
    refuse_in_fleet(config)
    changes = [f"clients.population={nodes}"]
    if rounds is not None:
        changes.append(f"run.rounds={rounds}")
    notes: list[str] = []
    if config.privacy.mode == "client-distributed":
        msg = "fedslm up does not make the identity keys that mode client-distributed needs."
        hint = 'Give --set privacy.mode="client-central", or follow docs/deploy/tutorial.md.'
        raise UsageError(msg, hint=hint)
    if config.clients.cohort is not None and config.clients.cohort > nodes:
        changes.append(f"clients.cohort={float(nodes)}")
        notes.append(f"clients.cohort is {nodes} instead of {config.clients.cohort:g}.")
    if config.data.text is None and config.data.prompt is None:
        changes.append(f'data.text="{_TEXT}"')
    if config.audit.canaries or config.audit.client_canaries:
        changes += ["audit.canaries=0", "audit.client_canaries=0"]
        notes.append("No canaries: a simulation plants them, the owner of a device does not.")
    if config.privacy.noise_source != "os-entropy":
        changes.append('privacy.noise_source="os-entropy"')
        notes.append("The noise is secret (os-entropy); devices refuse noise that is seeded.")
    if config.personal.steps > 0:
        notes.append("personal.steps: each owner takes them, with: fedslm client personalise")
    return FleetScenario(resolved=open_scenario(name, [*overrides, *changes]), notes=tuple(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class DealtDataset:
    """The records that lie on the devices, read and split as each device does it.

    Attributes:
        files: of each client, in the order of their numbers.
        config: the scenario.
        facts: public facts about where the records are from.
    """

    files: tuple[Path, ...]
    config: RunConfig
    facts: Mapping[str, object]

    @property
    def population(self) -> int:
        """Number of clients."""
        return len(self.files)

    def client(self, index: int) -> ClientData:
        """Return the records of one device."""
        require_index(index, self.population)
        return LocalSource(path=self.files[index], config=self.config).client(index)

    def describe(self) -> dict[str, object]:
        """Return public facts."""
        return dict(self.facts)


def deal(dataset: FederatedDataset, config: RunConfig, folders: Sequence[Path]) -> None:
    """Write each client's records into a folder, a JSON object a line, for its owner alone."""
    for index, folder in enumerate(folders):
        data = dataset.client(index)
        rows = [_row(record, config) for record in (*data.train, *data.holdout)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_private(folder / RECORDS, text.encode("utf-8"))


def _row(record: Record, config: RunConfig) -> dict[str, str | None]:
    """Return a record under the scenario's columns."""
    data = config.data
    if data.prompt is not None and data.response is not None:
        return {data.prompt: record.prompt, data.response: record.response}
    row: dict[str, str | None] = {data.text or _TEXT: record.text}
    if config.task.classifies and data.label is not None:
        row[data.label] = record.label
    return row


def policy_for(
    plan: PrivacyPlan, config: RunConfig, *, base_digest: str, server_key: str | None
) -> str:
    """Return a policy that allows this plan and nothing beyond it.

    The budgets are what the whole run costs by the device's own account, or the scenario's cap
    where that is more.

    Args:
        plan: the plan of the run.
        config: the scenario.
        base_digest: of the base model.
        server_key: the key that signs the server's ledger.
    """
    tables: dict[str, Any] = {
        "schema": 1,
        "modes": [plan.mode],
        "base_models": [base_digest],
        "aggregation": [config.policy],
        "max_rounds": plan.rounds,
    }
    # Nothing is charged in mode none, so that no round comes with a signed head of the ledger.
    if server_key is not None and plan.mode != "none":
        tables["server_key"] = server_key
    if config.buffer.used:
        tables["asynchronous"] = True
    lines = [
        "# Written by fedslm up for its own scenario; docs/device-policy.md explains each key."
    ]
    lines += [f"{key} = {json.dumps(value)}" for key, value in tables.items()]
    for part in _parts(plan):
        lines += ["", *_budget_lines(part)]
    return "\n".join(lines) + "\n"


def _parts(plan: PrivacyPlan) -> list[PrivacyPlan]:
    """Return the parts of a plan that protect a unit."""
    if plan.mode == "none":
        return []
    return [plan] if plan.example is None else [plan, plan.example]


def _budget_lines(part: PrivacyPlan) -> list[str]:
    """Return the section of the policy for one privacy unit."""
    unit = part.unit or PrivacyUnit.CLIENT
    budget = Budget(
        unit=unit,
        max_epsilon=_UNBOUNDED,
        delta=part.delta or 0.0,
        neighboring_relation=relation_of(str(part.neighboring_relation)),
        min_noise_multiplier=0.0,
    )
    of_example = unit is PrivacyUnit.EXAMPLE
    charge = (
        example_charge(part, budget)
        if of_example
        else client_charge(part, budget, honest_fraction=1.0)
    )
    needed = max(charge.plan.epsilon(), part.cap or 0.0)
    # Rounded away from what the plan asks, so that digits that are not written refuse nothing.
    noise = math.floor((charge.plan.least_noise_multiplier or 0.0) * 1e4) / 1e4
    lines = [
        "[example]" if of_example else "[client]",
        f"max_epsilon = {math.ceil(needed * 1e4) / 1e4}",
        f"delta = {part.delta!r}",
        f'neighboring_relation = "{part.neighboring_relation}"',
        f"min_noise_multiplier = {noise}",
    ]
    if of_example:
        lines.append(f"max_sampling_probability = {part.sampling_probability!r}")
    return lines
