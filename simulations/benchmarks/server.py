"""What a round costs the server beside its clients: aggregation, checkpoint, ledger.

Updates are encoded once, before the clock, and reach :func:`server.collect.collect_updates` as
messages: decoding, every check, the clip, the sum, and the noise of the release are on the clock.
The naive way decodes the same messages with numpy, stacks them all and takes the mean, with no
check, clip or noise; it is timed in turns with ours, on fewer updates, because it keeps them all.

Seconds are wall-clock time in one process. Memory is the largest size of a process of its own above
what it had before the first update, in MB of 1e6 bytes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.budget import RunBudget
from server.checkpoint import Checkpoint, write_checkpoint
from shared.errors import SchemaMismatch
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from simulations.benchmarks.engine_runs import child_environment
from simulations.benchmarks.protocol import BenchResult, Check, Scalar
from simulations.benchmarks.server_cohort import DIGEST, DISTINCT, Cohort, plan_of_case, update

SUMMARY = "Aggregation of large cohorts, checkpoints and the ledger: seconds and memory a round."

AGGREGATION_SECONDS = 3.0
MEMORY_MB = 8.0
_COHORT = "simulations.benchmarks.server_cohort"
_SCOPE = "benchmark"

Row = dict[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        updates: of the promise.
        few: of the comparisons with keeping them all, and of memory.
        parameters: of an update.
        repeats: of what is repeated.
        cohort: clients that a round of mode example charges.
    """

    updates: int
    few: int
    parameters: int
    repeats: int
    cohort: int


FULL = Sizes(updates=1_000, few=100, parameters=1_000_000, repeats=5, cohort=1_000)
QUICK = Sizes(updates=40, few=10, parameters=20_000, repeats=3, cohort=20)


def run(*, quick: bool) -> BenchResult:
    """Measure aggregation, checkpoint and ledger.

    Raises:
        SchemaMismatch: if the streamed mean is not the stacked one.
    """
    sizes = QUICK if quick else FULL
    rows: list[Row] = []
    checks: list[Check] = []
    for part in (_promised, _beside_naive, _memory, _disk, _ledger):
        found, promised = part(sizes)
        rows += found
        checks += promised
    return BenchResult(
        name="server",
        parameters={
            "updates": sizes.updates,
            "parameters": sizes.parameters,
            "updates kept at once by the naive way": sizes.few,
            "quick": quick,
        },
        rows=tuple(rows),
        checks=tuple(checks),
    )


Part = tuple[list[Row], list[Check]]


def _promised(sizes: Sizes) -> Part:
    """Time the promised number of updates, once in each mode."""
    rows: list[Row] = []
    for case in ("none", "client-central", "client-central, moving clip"):
        cohort = Cohort.of(case, sizes.parameters)
        cohort.aggregate(DISTINCT)
        seconds = _timed(cohort.aggregate, sizes.updates)
        rows.append(
            {
                "case": f"mode {case}",
                "updates": sizes.updates,
                "seconds": round(seconds, 4),
                "ms_an_update": round(1e3 * seconds / sizes.updates, 4),
            }
        )
    checks = [
        Check(
            name=f"{row['case']}: {sizes.updates} updates of {sizes.parameters} parameters",
            measured=float(str(row["seconds"])),
            limit=AGGREGATION_SECONDS,
            unit="s",
        )
        for row in rows
    ]
    return rows, checks


def _beside_naive(sizes: Sizes) -> Part:
    """Time ours and the naive way in turns, and compare what they found.

    Raises:
        SchemaMismatch: if the two means differ by more than rounding.
    """
    rows: list[Row] = []
    for case in ("none", "client-central"):
        cohort = Cohort.of(case, sizes.parameters)
        ours: list[float] = []
        naive: list[float] = []
        for _ in range(sizes.repeats):
            ours.append(_timed(cohort.aggregate, sizes.few))
            naive.append(_timed(cohort.stack, sizes.few))
        if case == "none":
            _compare(cohort.aggregate(sizes.few).vector, cohort.stack(sizes.few))
        ratios = [a / b for a, b in zip(ours, naive, strict=True)]
        rows.append(
            {
                "case": f"mode {case}, beside stacking",
                "updates": sizes.few,
                "seconds": round(statistics.median(ours), 4),
                "ms_an_update": round(1e3 * statistics.median(ours) / sizes.few, 4),
                "naive_s": round(statistics.median(naive), 4),
                "over_naive": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
            }
        )
    return rows, []


def _memory(sizes: Sizes) -> Part:
    """Measure memory with few and with many updates, and of keeping a few."""
    few = _in_child("stream", sizes.few, sizes.parameters)
    many = _in_child("stream", sizes.updates, sizes.parameters)
    kept = _in_child("stack", sizes.few, sizes.parameters)
    rows: list[Row] = [
        {"case": "memory, ours", "updates": sizes.few, "peak_mb": round(few, 1)},
        {"case": "memory, ours", "updates": sizes.updates, "peak_mb": round(many, 1)},
        {"case": "memory, stacking", "updates": sizes.few, "peak_mb": round(kept, 1)},
    ]
    name = f"memory of {sizes.updates} updates above that of {sizes.few}"
    return rows, [Check(name=name, measured=many - few, limit=MEMORY_MB, unit="MB")]


def _disk(sizes: Sizes) -> Part:
    """Time a checkpoint with Adam's moments."""
    vector = update(0, sizes.parameters)
    wide = vector.astype(np.float64)
    checkpoint = Checkpoint(
        server_round=1,
        config_digest=DIGEST,
        vector=vector,
        average=wide,
        averaged=0,
        optimizer={"first": wide, "second": wide},
        optimizer_steps=1,
        record={"round": 1},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        seconds = [_timed(write_checkpoint, path, checkpoint) for _ in range(sizes.repeats)]
    return [_row_of("checkpoint with Adam's moments", seconds)], []


def _ledger(sizes: Sizes) -> Part:
    """Time what a round asks of the ledger: a charge, its commit, what is spent, its end."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for mode, cohort in (("client-central", 1), ("example", sizes.cohort)):
            path = Path(folder) / f"{mode}.sqlite"
            signer = LedgerSigner.load_or_create(path.with_suffix(".key"))
            with Ledger(path, signer=signer) as ledger:
                plan = plan_of_case(mode) if mode == "client-central" else _plan_of_examples()
                plan.epsilon()
                rows += _rounds_of(ledger, plan, cohort=cohort, rounds=10 * sizes.repeats)
    return rows, []


def _rounds_of(ledger: Ledger, plan: PrivacyPlan, *, cohort: int, rounds: int) -> list[Row]:
    """Charge some rounds and return a row for each kind of call."""
    budget = RunBudget(ledger, plan=plan, run_id="run", scope=_SCOPE)
    spent: dict[str, list[float]] = {"reserve": [], "commit": [], "spent": [], "signed end": []}
    for server_round in range(1, rounds + 1):
        began = time.perf_counter()
        charge = budget.reserve(server_round, range(cohort))
        spent["reserve"].append(time.perf_counter() - began)
        spent["commit"].append(_timed(budget.commit, charge))
        spent["spent"].append(_timed(budget.spent))
        spent["signed end"].append(_timed(budget.signed_head))
    subjects = "population" if plan.mode == "client-central" else f"{cohort} clients"
    return [
        _row_of(f"ledger, mode {plan.mode}, {subjects}: {name}", seconds)
        for name, seconds in spent.items()
    ]


def _plan_of_examples() -> PrivacyPlan:
    """Return a plan whose rounds charge every client of a cohort."""
    return make_plan(
        mode="example",
        unit="example",
        neighboring_relation="add-or-remove-one",
        delta=1e-5,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        sampling_probability=0.1,
        rounds=100,
        population=10_000,
    )


def _row_of(case: str, seconds: Sequence[float]) -> Row:
    """Return the row of something that was timed several times."""
    return {
        "case": case,
        "times": len(seconds),
        "seconds": round(statistics.median(seconds), 5),
        "seconds_min": round(min(seconds), 5),
        "seconds_max": round(max(seconds), 5),
    }


def _timed(work: Callable[..., object], *arguments: object) -> float:
    """Return the seconds that something took."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _compare(ours: NDArray[np.float64], naive: NDArray[np.float32]) -> None:
    """Require two means to be the same up to rounding.

    Raises:
        SchemaMismatch: if they are not.
    """
    if not np.allclose(ours, naive, rtol=1e-3, atol=1e-6):
        msg = "The streamed mean is not the mean of the stacked updates."
        raise SchemaMismatch(msg)


def _in_child(way: str, updates: int, parameters: int) -> float:
    """Return the MB that a process of its own needed at most, above what it had before."""
    run = subprocess.run(  # noqa: S603 - our own program, no shell
        [sys.executable, "-m", _COHORT, way, str(updates), str(parameters)],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(1),
    )
    return float(json.loads(run.stdout.strip().splitlines()[-1]))
