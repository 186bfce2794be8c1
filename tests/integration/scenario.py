"""A scenario small enough for tests: the demo model, a dozen clinics, three rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from shared.configfile import resolve
from simulations.progress import PlainProgress
from simulations.simulate import Result, simulate

TABLES: dict[str, dict[str, object]] = {
    "run": {"name": "small", "rounds": 3, "seed": 5},
    "model": {"base": "demo"},
    "lora": {"r": 2},
    "data": {"path": "builtin:clinics", "records": 6, "max_length": 64},
    "clients": {
        "population": 12,
        "cohort": 6.0,
        "local_steps": 1,
        "batch_size": 4,
        "learning_rate": 0.5,
    },
    "server": {"optimizer": "momentum", "momentum": 0.5},
    "privacy": {
        "mode": "client-central",
        "neighboring_relation": "add-or-remove-one",
        "epsilon": 50.0,
        "delta": 1e-3,
        "clipping_norm": 0.5,
        "max_grad_norm": 0.5,
        "sampling_probability": 0.5,
        "noise_source": "seeded-simulation",
    },
    "aggregation": {"policy": "ffa"},
    "audit": {"canaries": 32, "references": 32, "profile": "none"},
    "evaluation": {"clients": 4},
    "performance": {"threads": 1},
}


def scenario_text() -> str:
    """Return the scenario as TOML."""
    lines = []
    for section, table in TABLES.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {value!r}".replace("'", '"') for key, value in table.items()]
    return "\n".join(lines) + "\n"


def run_small(folder: Path, overrides: Sequence[str] = (), *, resume: bool = False) -> Result:
    """Run the small scenario with overrides."""
    resolved = resolve(TABLES, overrides, source="test")
    progress = PlainProgress(resolved.config.run.rounds, Console(quiet=True))
    return simulate(resolved, folder=folder, resume=resume, progress=progress)
