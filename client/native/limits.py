"""The owner's policy as the native client keeps it, or the reason why it could not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.keyring import IDENTITY
from client.policy import ClientPolicy
from client.policyfile import AdaptersSection, ConditionsSection, read_policy_file
from shared.errors import PolicyRefused
from shared.privacy.events import NeighboringRelation

if TYPE_CHECKING:
    from client.edge.program import StepManifest
    from shared.config import RunConfig

_MODES: Final = ("example", "client-central", "client-distributed")

ROSTER: Final = "roster.json"
"""The owner's roster in the folder of a device."""


def native_limits(path: Path, config: RunConfig, manifest: StepManifest) -> dict[str, object]:
    """Return the owner's limits for one mode, as ``client.conf`` says them.

    Args:
        path: the owner's policy file.
        config: the scenario.
        manifest: of the exported step.

    Raises:
        PolicyRefused: if the policy does not allow the scenario, or asks for what the native client
            would not keep.
        ConfigError: if the policy file is wrong.
    """
    policy, file = ClientPolicy.load(path), read_policy_file(path)
    mode = config.privacy.mode
    budget = policy.example if mode == "example" else policy.client
    reasons = {
        f"mode {mode!r}": mode in policy.modes and mode in _MODES,
        "the base model": manifest.base_digest in policy.base_models,
        "the number of rounds": config.run.rounds <= policy.max_rounds,
        "aggregation other than 'ffa'": config.policy == "ffa" and "ffa" in policy.aggregation,
        "another rank or scale of the step": (manifest.adapter.r, manifest.adapter.lora_alpha)
        == (config.lora.r, config.lora.alpha),
        "factors other than B that train": manifest.trained == "B",
        "two budgets at once": len(policy.budgets) == 1 and budget is not None,
        "answering again": policy.max_repeats == 0,
    }
    for reason, holds in reasons.items():
        if not holds:
            msg = f"The policy and the native client do not agree on {reason}."
            raise PolicyRefused(msg, hint="docs/native.md says what it does; or use a Python node.")
    if budget is None or budget.neighboring_relation is not NeighboringRelation.ADD_OR_REMOVE_ONE:
        msg = "The native client counts add-or-remove-one alone."
        raise PolicyRefused(msg, hint="Use a Python node.")
    found: dict[str, object] = {
        "mode": mode,
        "max_rounds": policy.max_rounds,
        "max_epsilon": budget.max_epsilon,
        "delta": budget.delta,
        "min_noise_multiplier": budget.min_noise_multiplier,
        "rehearsal": "yes" if policy.seeded_noise else "no",
    }
    if policy.server_key is not None:
        found["server_key"] = policy.server_key
    if mode == "client-distributed":
        found |= _secure(policy)
    if mode == "example":
        most = budget.max_sampling_probability
        found["max_sampling_probability"] = 1.0 if most is None else most
    return {**found, **_conditions(file.conditions), **_adapters(file.adapters)}


def _secure(policy: ClientPolicy) -> dict[str, object]:
    """Return whom the owner lets the device sum with, and by which key it is known to them."""
    secure = policy.secure_aggregation
    if secure is None:
        msg = "The policy says nothing of secure aggregation."
        raise PolicyRefused(msg, hint="docs/device-policy.md, secure_aggregation.")
    return {
        "identity": IDENTITY,
        "roster": ROSTER,
        "roster_digest": hashlib.sha256(secure.read_roster()).hexdigest(),
        "min_cohort": secure.min_cohort,
        "honest_fraction": secure.honest_fraction,
    }


def _conditions(asked: ConditionsSection | None) -> dict[str, object]:
    """Return when the device may work."""
    said = {} if asked is None else asked.model_dump(exclude_defaults=True)
    return {name: _said(value) for name, value in said.items()}


def _adapters(asked: AdaptersSection | None) -> dict[str, object]:
    """Return which adapters the device takes."""
    said = {} if asked is None else asked.model_dump(exclude_defaults=True)
    return {f"adapter_{name}": _said(value) for name, value in said.items()}


def _said(value: object) -> object:
    """Write a value of the policy as ``client.conf`` does."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, tuple) else value
