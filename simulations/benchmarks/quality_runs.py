"""The runs of the benchmark ``quality``: each in a folder of its own, finished ones left alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.prepared import read_metrics
from shared.errors import ClientFailed, RunFolderError
from shared.files import append_line
from simulations.benchmarks.finished import open_kept
from simulations.benchmarks.protocol import PROGRESS, Asked
from simulations.benchmarks.quality_arms import Case
from simulations.benchmarks.training import Silence
from simulations.simulate import simulate


class RoundClock(Silence):
    """Writes down how much of the processor each round took, so that it survives an interruption.

    Args:
        path: of the file that gets a line a round; lines of earlier rounds stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = 0.0

    def started(self, server_round: int, cohort: int) -> None:
        """Note the time."""
        self._began = time.process_time()

    def finished(self, record: Mapping[str, Any]) -> None:
        """Write down what the round took."""
        seconds = time.process_time() - self._began
        append_line(self._path, json.dumps({"round": record["round"], "seconds": seconds}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run came to.

    Attributes:
        case: the run.
        mode: its privacy mode.
        epsilon: what the ledger says was spent; None without a guarantee, as the next four.
        delta: that belongs to it.
        unit: that it protects.
        relation: which neighbours it compares.
        cap: what the ledger never lets pass.
        releases: that it counts.
        loss_before: mean held-out loss of the base over clients, nats per token.
        loss: the same with the adapter.
        up: bytes that a client sends in a round, the largest of the rounds.
        down: bytes that a client is sent in a round, likewise.
        moved: bytes both ways over the whole run, by registered client.
        seconds: this process's time in the rounds, without start, measurement and report.
    """

    case: Case
    mode: str
    epsilon: float | None
    delta: float | None
    unit: str | None
    relation: str | None
    cap: float | None
    releases: int
    loss_before: float
    loss: float
    up: int
    down: int
    moved: float
    seconds: float


def measure(wanted: Sequence[Case], asked: Asked, *, base_dir: Path) -> list[Measured]:
    """Run every case that the folder does not hold finished, and read all of them.

    Args:
        wanted: cases that the rules accept.
        asked: where runs are kept, and whether to go on with them.
        base_dir: what relative paths of the scenarios are relative to.

    Raises:
        RunFolderExists: if the folder holds runs and ``asked.resume`` is False.
        FedSLMError: any error of a run; finished ones stay.
    """
    open_kept(asked, of="runs")
    return list(_runs(wanted, asked.folder, base_dir))


def read_run(case: Case, folder: Path, summary: Mapping[str, Any]) -> Measured:
    """Read what a finished run came to.

    Args:
        case: the run.
        folder: its run folder; :class:`RoundClock` wrote beside it.
        summary: the contents of its ``summary.json``.

    Raises:
        ClientFailed: if a round was aborted; its seconds and bytes would be no round's.
        RunFolderError: if a round was not timed.
    """
    rounds = read_metrics(folder)
    lost = [record["round"] for record in rounds if record["aborted"] is not None]
    if lost:
        msg = f"{case}: rounds {lost} were aborted, expected none."
        raise ClientFailed(msg, hint="Look into the run's folder; run it again in another one.")
    privacy = summary["privacy"]
    sent = sum(
        (record["bytes_up_per_client"] + record["bytes_down_per_client"]) * record["answered"]
        for record in rounds
    )
    return Measured(
        case=case,
        mode=str(privacy["mode"]),
        epsilon=privacy["epsilon"],
        delta=privacy["delta"],
        unit=privacy["unit"],
        relation=privacy["neighboring_relation"],
        cap=privacy["cap"],
        releases=privacy["releases"],
        loss_before=summary["loss_before"],
        loss=summary["loss_after"],
        up=max(record["bytes_up_per_client"] for record in rounds),
        down=max(record["bytes_down_per_client"] for record in rounds),
        moved=sent / summary["population"],
        seconds=_seconds(folder, rounds=len(rounds)),
    )


def _clock_of(folder: Path) -> Path:
    """Return the file in which a run's rounds are timed."""
    return folder.with_name(f"{folder.name}.seconds.jsonl")


def _seconds(folder: Path, *, rounds: int) -> float:
    """Return the time of all rounds; of one that was done twice, that of the last time."""
    path = _clock_of(folder)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {record["round"]: record["seconds"] for record in map(json.loads, lines)}
    if len(found) != rounds:
        msg = f"{path.name} has the time of {len(found)} rounds, expected {rounds}."
        raise RunFolderError(msg, hint="Choose another --out, where all rounds are timed.")
    return float(sum(found.values()))


def _runs(wanted: Sequence[Case], folder: Path, base_dir: Path) -> Iterator[Measured]:
    """Run or read the cases one after the other, and say so."""
    ran, spent = 0, 0.0
    for number, case in enumerate(wanted, start=1):
        if case.resolved is None:
            continue
        place = folder / case.name
        kept = (place / "summary.json").exists()
        began = time.monotonic()
        clock = RoundClock(_clock_of(place))
        found = simulate(
            case.resolved, folder=place, resume=True, progress=clock, base_dir=base_dir
        )
        took = time.monotonic() - began
        line = f"run {number} of {len(wanted)}: {case}: "
        if kept:
            PROGRESS.info("%skept", line)
        else:
            ran, spent = ran + 1, spent + took
            minutes = spent / ran * (len(wanted) - number) / 60
            left = f", about {max(1, round(minutes))} min left" if number < len(wanted) else ""
            PROGRESS.info("%sloss %.4f, %.0f s%s", line, found.summary["loss_after"], took, left)
        yield read_run(case, place, found.summary)
