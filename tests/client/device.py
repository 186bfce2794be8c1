"""A device for tests: its policy file, its plans, the base model that it knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.config import RunConfig
from shared.configfile import resolve
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan

BASE = "ab" * 32

Tables = dict[str, Any]

EXAMPLE: Tables = {
    "max_epsilon": 8.0,
    "delta": 1e-5,
    "neighboring_relation": "add-or-remove-one",
    "min_noise_multiplier": 0.7,
    "max_sampling_probability": 0.25,
}
CLIENT: Tables = {
    "max_epsilon": 20.0,
    "delta": 1e-5,
    "neighboring_relation": "add-or-remove-one",
    "min_noise_multiplier": 0.5,
}
SECURE: Tables = {"roster": "roster.json", "min_cohort": 4, "honest_fraction": 0.6}


def toml(tables: Mapping[str, Any]) -> str:
    """Write one level of tables as TOML."""
    top = [f"{k} = {_value(v)}" for k, v in tables.items() if not isinstance(v, Mapping)]
    for name, table in tables.items():
        if isinstance(table, Mapping):
            top += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(top) + "\n"


def policy_tables(mode: str = "example", **changes: Any) -> Tables:
    """Return a policy for one mode; a change of ``None`` leaves the key out."""
    tables: Tables = {
        "schema": 1,
        "modes": [mode],
        "base_models": [BASE],
        "aggregation": ["ffa"],
        "max_rounds": 5,
    }
    if mode == "example":
        tables["example"] = EXAMPLE
    elif mode != "none":
        tables["client"] = CLIENT
    if mode == "client-distributed":
        tables["secure_aggregation"] = SECURE
    merged = {**tables, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def write_policy(folder: Path, mode: str = "example", **changes: Any) -> Path:
    """Write a policy file."""
    path = folder / "policy.toml"
    path.write_text(toml(policy_tables(mode, **changes)), encoding="utf-8")
    return path


def scenario(mode: str = "example", **privacy: Any) -> RunConfig:
    """Return a scenario of five rounds for one mode."""
    tables: Tables = {
        "run": {"name": "rehearsal", "rounds": 5, "seed": 5},
        "lora": {"r": 2},
        "data": {"path": "notes.jsonl", "text": "note", "max_length": 32, "partitioner": "iid"},
        "clients": {
            "population": 10,
            "cohort": 5.0,
            "local_steps": 2,
            "batch_size": 2,
            "learning_rate": 0.5,
        },
        "privacy": {
            "mode": mode,
            "neighboring_relation": "add-or-remove-one",
            "noise_multiplier": 1.0,
            "delta": 1e-4,
            "clipping_norm": 0.5,
            "max_grad_norm": 0.5,
            "sampling_probability": 0.2,
            **privacy,
        },
        "performance": {"threads": 1},
    }
    return resolve(tables, source="test").config


def plan(mode: str = "example", **changes: Any) -> PrivacyPlan:
    """Return the plan of :func:`scenario`."""
    values: dict[str, Any] = {
        "mode": mode,
        "unit": None if mode == "none" else "example" if mode == "example" else "client",
        "rounds": 5,
        "population": 10,
        "neighboring_relation": "add-or-remove-one",
        "delta": 1e-4,
        "noise_multiplier": 1.0,
        "clipping_norm": 0.5,
        "max_grad_norm": 0.5,
        "sampling_probability": 0.2 if mode == "example" else 0.5,
        "releases_per_round": 2 if mode == "example" else 1,
    }
    return make_plan(**{**values, **changes})


def _value(value: Any) -> str:
    """Write one value."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).replace("'", '"')
