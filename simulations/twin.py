"""The non-private twin of a run: the positive control that shows most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shared.configfile import load_config
from simulations.runfolder import CONFIG
from simulations.simulate import simulate
from simulations.twinprogress import TwinProgress


def train_twin(run_dir: Path, folder: Path, *, base_dir: Path, note: Callable[[str], None]) -> None:
    """Run the non-private twin of a run, or go on with one, into a folder of its own.

    The same scenario in mode ``none``: same seed, data, canaries and coins, nothing clipped and
    nothing noised.

    Args:
        run_dir: the private run.
        folder: where the twin goes; a finished one there is kept.
        base_dir: what relative paths of the scenario are relative to.
        note: is told about rounds.

    Raises:
        RunFolderError: if the folder holds a run of another scenario.
    """
    resolved = load_config(
        run_dir / CONFIG,
        ['privacy.mode="none"', 'audit.profile="none"', "evaluation.final_clients=50"],
        source=CONFIG,
    )
    progress = TwinProgress(resolved.config.run.rounds, note)
    simulate(resolved, folder=folder, resume=True, progress=progress, base_dir=base_dir)
