"""Whole simulations for benchmarks: the quickstart with other values, in a folder that goes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.checkpoint import read_checkpoint
from shared.configfile import load_config
from simulations.simulate import simulate

_SCENARIO = Path(__file__).parents[1] / "scenarios" / "quickstart.toml"

# Small enough for a minute a run on one core, with noise that can be felt at epsilon 8.
SETTING: Mapping[str, object] = {
    "clients.population": 200,
    "clients.cohort": 20.0,
    "run.rounds": 40,
    "model.quantization": "none",
    "privacy.delta": 1e-3,
    "evaluation.every": 40,
    "evaluation.clients": 1,
    "evaluation.final_clients": 200,
    "audit.canaries": 0,
    # Losses and epsilon are all that is read; attacking every run would take most of the time.
    "audit.profile": "none",
}
QUICK: Mapping[str, object] = {
    **SETTING,
    "clients.population": 24,
    "clients.cohort": 6.0,
    "run.rounds": 8,
    "evaluation.every": 8,
    "evaluation.final_clients": 24,
}


class Silence:
    """A progress display that shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def started(self, server_round: int, cohort: int) -> None:
        """Show nothing."""

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Show nothing."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """Show nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run came to.

    Attributes:
        loss_before: mean held-out loss of the base over clients.
        loss: the same after training.
        epsilon: what the ledger says was spent.
        noise_multiplier: of the plan.
        last_clip: the clip that a further round would have; None where it does not move.
    """

    loss_before: float
    loss: float
    epsilon: float
    noise_multiplier: float
    last_clip: float | None


def train(overrides: Mapping[str, object], *, seed: int) -> Trained:
    """Run the quickstart scenario with other values.

    Args:
        overrides: ``section.key`` to a number or a word.
        seed: of the run.

    Raises:
        FedSLMError: as :func:`simulations.simulate.simulate`.
    """
    texts = [f"{key}={value}" for key, value in {**overrides, "run.seed": seed}.items()]
    resolved = load_config(_SCENARIO, texts, source="quickstart")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        summary = simulate(resolved, folder=folder, resume=False, progress=Silence()).summary
        last = read_checkpoint(folder, config_digest=resolved.config.digest())
    return Trained(
        loss_before=float(summary["loss_before"]),
        loss=float(summary["loss_after"]),
        epsilon=float(summary["privacy"]["epsilon"]),
        noise_multiplier=float(summary["privacy"]["noise_multiplier"]),
        last_clip=None if last is None else last.clip,
    )
