"""The runs of the benchmark ``stragglers``, and what its table says of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.prepared import read_metrics
from shared.configfile import ResolvedConfig
from simulations.benchmarks.finished import open_kept
from simulations.benchmarks.protocol import PROGRESS, Asked, Scalar
from simulations.benchmarks.quality_select import selected
from simulations.benchmarks.training import Silence
from simulations.catalog import open_scenario
from simulations.simulate import simulate

SEEDS = (7, 8, 9)
GOAL = 0.9
SYNCHRONOUS, OVER, BUFFERED = "synchronous", "over-selected", "buffered"
ARMS: Mapping[str, Mapping[str, object]] = {
    SYNCHRONOUS: {},
    OVER: {"server.over_selection": 1.5},
    BUFFERED: {"buffer.size": 10, "buffer.concurrency": 30, "run.rounds": 60},
}
DEVICES: Mapping[str, object] = {
    "clock.shares": [0.5, 0.35, 0.15],
    "clock.step_seconds": [2.0, 8.0, 40.0],
    "clock.upload": [1e6, 2.5e5, 3e4],
    "clock.download": [4e6, 1e6, 1e5],
    "clock.jitter": 0.3,
    "clock.dropout": 0.05,
    "clock.available_share": 0.6,
    "clock.deadline_seconds": 300.0,
}
SETTING: Mapping[str, object] = {
    "privacy.mode": "none",
    "model.quantization": "none",
    "clients.population": 200,
    "clients.cohort": 20.0,
    "clients.local_steps": 2,
    "run.rounds": 30,
    "server.schedule": "linear",
    "server.learning_rate": 0.03,
    "server.quorum": 0.0,
    "evaluation.every": 2,
    "evaluation.clients": 40,
    "evaluation.final_clients": 40,
    "audit.canaries": 0,
    "audit.profile": "none",
    "audit.releases": False,
}
QUICK: Mapping[str, object] = {
    "clients.population": 24,
    "clients.cohort": 6.0,
    "run.rounds": 4,
    "evaluation.every": 1,
    "evaluation.clients": 4,
    "evaluation.final_clients": 4,
}
QUICK_BUFFER: Mapping[str, object] = {
    "buffer.size": 3,
    "buffer.concurrency": 9,
    "run.rounds": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        arm: how stragglers are dealt with.
        seed: of the run.
        resolved: the scenario.
    """

    arm: str
    seed: int
    resolved: ResolvedConfig

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.arm}-seed-{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What one run came to.

    Attributes:
        arm: how stragglers were dealt with.
        seed: of the run.
        before: held-out loss of the base.
        times: simulated hours at the rounds that were measured.
        losses: measured there.
        counted: answers counted until each of them.
        asked: participations that were begun, in all.
    """

    arm: str
    seed: int
    before: float
    times: tuple[float, ...]
    losses: tuple[float, ...]
    counted: tuple[int, ...]
    asked: int


def cases(only: Sequence[str], *, quick: bool) -> list[Case]:
    """Return the runs that some words leave in.

    Raises:
        InvalidValue: for a word that names nothing.
    """
    seeds = SEEDS[:1] if quick else SEEDS
    axes = selected({"arm": tuple(ARMS), "seed": tuple(map(str, seeds))}, only)
    found = []
    for seed in map(int, axes["seed"]):
        for arm in axes["arm"]:
            values = {**SETTING, **DEVICES, **(QUICK if quick else {}), **ARMS[arm]}
            if quick and arm == BUFFERED:
                values |= QUICK_BUFFER
            said = [f"{key}={json.dumps(value)}" for key, value in values.items()]
            resolved = open_scenario("quickstart", [*said, f"run.seed={seed}"])
            found.append(Case(arm=arm, seed=seed, resolved=resolved))
    return found


def measure(chosen: Sequence[Case], asked: Asked) -> list[Race]:
    """Run every case that the folder does not hold finished, and read all of them.

    Raises:
        RunFolderExists: if the folder holds runs and ``asked.resume`` is False.
        FedSLMError: any error of a run; finished ones stay.
    """
    open_kept(asked, of="runs")
    found = []
    for number, case in enumerate(chosen, start=1):
        place = asked.folder / case.name
        began = time.monotonic()
        done = simulate(case.resolved, folder=place, resume=True, progress=Silence())
        race = read_race(case, place, before=float(done.summary["loss_before"]))
        took = time.monotonic() - began
        line = "run %d of %d: %s: loss %.4f after %.2f simulated hours, %.0f s"
        PROGRESS.info(line, number, len(chosen), case.name, race.losses[-1], race.times[-1], took)
        found.append(race)
    return found


def read_race(case: Case, folder: Path, *, before: float) -> Race:
    """Read what a finished run came to."""
    records = read_metrics(folder)
    counted, total = [], 0
    for record in records:
        total += int(record["answered"])
        counted.append(total)
    kept = [i for i, record in enumerate(records) if record["loss"] is not None]
    return Race(
        arm=case.arm,
        seed=case.seed,
        before=before,
        times=tuple(float(records[i]["simulated_seconds"]) / 3600 for i in kept),
        losses=tuple(float(records[i]["loss"]) for i in kept),
        counted=tuple(counted[i] for i in kept),
        asked=sum(int(record["cohort"]) for record in records),
    )


def reached(race: Race, goal: float | None) -> int | None:
    """Return which measurement was the first at or below a loss; None if none was."""
    if goal is None:
        return None
    return next((i for i, loss in enumerate(race.losses) if loss <= goal), None)


def goals(races: Sequence[Race]) -> dict[int, float]:
    """Return the goal of every seed whose synchronous run is there."""
    return {
        race.seed: race.before + GOAL * (race.losses[-1] - race.before)
        for race in races
        if race.arm == SYNCHRONOUS
    }


def table(races: Sequence[Race]) -> tuple[dict[str, Scalar], ...]:
    """Return a row a run, and a row of medians an arm."""
    aims = goals(races)
    rows = [_row(race, aims.get(race.seed)) for race in races]
    for arm in dict.fromkeys(race.arm for race in races):
        mine = [row for row in rows if row["arm"] == arm]
        if len(mine) > 1:
            rows.append({"arm": arm, "seed": "median", **_medians(mine)})
    return tuple(rows)


def _row(race: Race, goal: float | None) -> dict[str, Scalar]:
    """Return the row of one run; the curve is for the plot."""
    at = reached(race, goal)
    return {
        "arm": race.arm,
        "seed": str(race.seed),
        "goal": goal,
        "hours to goal": None if at is None else race.times[at],
        "answers to goal": None if at is None else race.counted[at],
        "hours": race.times[-1],
        "loss": race.losses[-1],
        "answers counted": race.counted[-1],
        "clients asked": race.asked,
        "curve": " ".join(
            f"{hours:.4f}:{loss:.4f}" for hours, loss in zip(race.times, race.losses, strict=True)
        ),
    }


def _medians(rows: Sequence[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """Return the median of every column of numbers; a run that missed the goal leaves none."""
    found: dict[str, Scalar] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        numbers = [float(v) for v in values if isinstance(v, int | float)]
        if name not in {"arm", "seed", "curve"}:
            found[name] = statistics.median(numbers) if len(numbers) == len(values) else None
    return found
