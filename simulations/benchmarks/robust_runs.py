"""The runs of the benchmark ``robust``: each in a folder of its own, finished ones left alone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.benchmarks.finished import open_kept
from simulations.benchmarks.protocol import PROGRESS, Asked, Scalar
from simulations.benchmarks.robust_arms import Arm
from simulations.benchmarks.training import Silence
from simulations.simulate import simulate

Row = dict[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run came to.

    Attributes:
        arm: the run.
        loss_before: mean held-out loss of the base over clients, nats per token.
        loss: the same with the adapter; NaN where the model was destroyed.
        success: share of prompts whose trigger is answered with the target; None where no backdoor
            was tried.
        log_prob: mean log-probability of the target's tokens then, nats.
        seconds: of the whole run, wall clock.
    """

    arm: Arm
    loss_before: float
    loss: float
    success: float | None
    log_prob: float | None
    seconds: float


def measure(wanted: Sequence[Arm], asked: Asked, *, base_dir: Path) -> list[Outcome]:
    """Run every arm that the folder does not hold finished, and read all of them.

    Args:
        wanted: the arms.
        asked: where runs are kept, and whether to go on with them.
        base_dir: the working directory.

    Raises:
        RunFolderExists: if the folder holds runs and ``asked.resume`` is False.
        FedSLMError: any error of a run; finished ones stay.
    """
    open_kept(asked, of="runs")
    found, ran, spent = [], 0, 0.0
    for number, arm in enumerate(wanted, start=1):
        place = asked.folder / arm.name
        kept = (place / "summary.json").exists()
        began = time.monotonic()
        summary = simulate(
            arm.resolved, folder=place, resume=True, progress=Silence(), base_dir=base_dir
        ).summary
        took = time.monotonic() - began
        outcome = read(arm, summary)
        found.append(outcome)
        line = f"run {number} of {len(wanted)}: {arm}: "
        if kept:
            PROGRESS.info("%skept", line)
            continue
        ran, spent = ran + 1, spent + took
        minutes = spent / ran * (len(wanted) - number) / 60
        left = f", about {max(1, round(minutes))} min left" if number < len(wanted) else ""
        PROGRESS.info("%sloss %.4f, %.0f s%s", line, outcome.loss, took, left)
    return found


def read(arm: Arm, summary: Mapping[str, Any]) -> Outcome:
    """Read what a finished run came to.

    Args:
        arm: the run.
        summary: the contents of its ``summary.json``.
    """
    backdoor = (summary["attack"] or {}).get("backdoor") or {}
    return Outcome(
        arm=arm,
        loss_before=summary["loss_before"],
        loss=math.nan if summary["loss_after"] is None else summary["loss_after"],
        success=backdoor.get("success"),
        log_prob=backdoor.get("log_prob"),
        seconds=summary["seconds"],
    )


def table(found: Sequence[Outcome]) -> tuple[Row, ...]:
    """Return a row for each defence, attack and share: medians and ranges over seeds."""
    groups: dict[tuple[str, str, float], list[Outcome]] = {}
    for one in found:
        groups.setdefault(one.arm.group, []).append(one)
    return tuple(_row(runs) for runs in groups.values())


def _row(runs: Sequence[Outcome]) -> Row:
    """Return the row of one group of seeds."""
    arm = runs[0].arm
    losses = [run.loss for run in runs]
    rates = [run.success for run in runs if run.success is not None]
    log_probs = [run.log_prob for run in runs if run.log_prob is not None]
    return {
        "attack": arm.attack,
        "attackers": arm.share,
        "defence": arm.defence,
        "seeds": len(runs),
        "loss_before": statistics.median(run.loss_before for run in runs),
        "loss": statistics.median(losses),
        "loss_min": min(losses),
        "loss_max": max(losses),
        "backdoor": statistics.median(rates) if rates else None,
        "backdoor_min": min(rates, default=None),
        "backdoor_max": max(rates, default=None),
        "target_log_prob": statistics.median(log_probs) if log_probs else None,
        "seconds": statistics.median(run.seconds for run in runs),
    }
