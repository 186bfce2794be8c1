"""What a round costs the server beside its clients: aggregation, checkpoint, ledger.

Eight different updates are encoded before the clock, and reach
:func:`server.collect.collect_updates` in turns as Flower's messages, in memory. On the clock is all
that a server does with a message: the checks of its header, reading its vector, the norm, the
verdict on it, the clip and the sum; and at the end the noise of the release and the division. Off
the clock is what brings a message in: the network, TLS and Flower's own objects.

The promise is in processor seconds, so that it is one core's whatever else the machine does; other
seconds are wall-clock time. The naive way decodes the same messages with numpy, stacks them all and
takes the mean, with no check, clip or noise; it is timed in turns with ours, on fewer updates,
because it keeps them all. Memory is the largest size of a process of its own above what it had
before the first update, in MB of 1e6 bytes.

A row is one thing that was measured: median, least and most of so many times, in its unit.
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
from simulations.benchmarks.server_cohort import (
    DIGEST,
    DISTINCT,
    MOVING,
    Cohort,
    plan_of_case,
    update,
)

SUMMARY = "Aggregation of large cohorts, checkpoints and the ledger: seconds and memory a round."

AGGREGATION_SECONDS = 3.0
MEMORY_MB = 8.0
_COHORT = "simulations.benchmarks.server_cohort"
_SCOPE = "benchmark"
CASES = ("none", "client-central", MOVING)

Row = dict[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        updates: of the promise.
        turns: how often that many are timed.
        few: of the comparisons with keeping them all, and of memory.
        parameters: of an update.
        repeats: of what is repeated.
        cohort: clients that a round of mode example charges.
    """

    updates: int
    turns: int
    few: int
    parameters: int
    repeats: int
    cohort: int


FULL = Sizes(updates=1_000, turns=3, few=100, parameters=1_000_000, repeats=5, cohort=1_000)
QUICK = Sizes(updates=40, turns=3, few=10, parameters=20_000, repeats=3, cohort=20)


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
    """Time the promised number of updates in each mode, the modes in turns."""
    cohorts = {case: Cohort.of(case, sizes.parameters) for case in CASES}
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for cohort in cohorts.values():
        cohort.aggregate(DISTINCT)
    for _ in range(sizes.turns):
        for case, cohort in cohorts.items():
            seconds[case].append(_timed(cohort.aggregate, sizes.updates, clock=time.process_time))
    rows = [
        _row_of(f"{case}, {sizes.updates} updates", found, "CPU s")
        for case, found in seconds.items()
    ]
    checks = [
        Check(
            name=f"{case}: {sizes.updates} of {sizes.parameters} parameters",
            measured=statistics.median(found),
            limit=AGGREGATION_SECONDS,
            unit="CPU s",
        )
        for case, found in seconds.items()
    ]
    return rows, checks


def _beside_naive(sizes: Sizes) -> Part:
    """Time ours and the naive way in turns, and compare what they found.

    Raises:
        SchemaMismatch: if the two means differ by more than rounding.
    """
    rows: list[Row] = []
    for case in CASES[:2]:
        cohort = Cohort.of(case, sizes.parameters)
        ours: list[float] = []
        naive: list[float] = []
        for _ in range(sizes.repeats):
            ours.append(_timed(cohort.aggregate, sizes.few))
            naive.append(_timed(cohort.stack, sizes.few))
        if case == "none":
            _compare(cohort.aggregate(sizes.few).vector, cohort.stack(sizes.few))
        ratios = [a / b for a, b in zip(ours, naive, strict=True)]
        rows += [
            _row_of(f"{case}, {sizes.few} updates", ours, "s"),
            _row_of(f"{case}, {sizes.few} stacked", naive, "s"),
            _row_of(f"{case}, over stacking", ratios, "x"),
        ]
    return rows, []


def _memory(sizes: Sizes) -> Part:
    """Measure memory with few and with many updates, and of keeping a few."""
    asked = (("stream", sizes.few), ("stream", sizes.updates), ("stack", sizes.few))
    few, many, kept = _in_child(asked, sizes.parameters)
    rows = [
        _row_of(f"memory, {sizes.few} updates", [few], "MB"),
        _row_of(f"memory, {sizes.updates} updates", [many], "MB"),
        _row_of(f"memory, {sizes.few} stacked", [kept], "MB"),
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
    return [_row_of("checkpoint with Adam's moments", seconds, "s")], []


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
        _row_of(f"ledger, {subjects}: {name}", [1e3 * value for value in seconds], "ms")
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


def _row_of(case: str, found: Sequence[float], unit: str) -> Row:
    """Return the row of something that was measured several times."""
    return {
        "case": case,
        "times": len(found),
        "median": _short(statistics.median(found)),
        "least": _short(min(found)),
        "most": _short(max(found)),
        "unit": unit,
    }


def _short(value: float) -> float:
    """Return a number with four digits that count."""
    return float(f"{value:.4g}")


def _timed(
    work: Callable[..., object],
    *arguments: object,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds that something took by a clock."""
    began = clock()
    work(*arguments)
    return clock() - began


def _compare(ours: NDArray[np.float64], naive: NDArray[np.float32]) -> None:
    """Require two means to be the same up to rounding.

    Raises:
        SchemaMismatch: if they are not.
    """
    if not np.allclose(ours, naive, rtol=1e-3, atol=1e-6):
        msg = "The streamed mean is not the mean of the stacked updates."
        raise SchemaMismatch(msg)


def _in_child(asked: Sequence[tuple[str, int]], parameters: int) -> list[float]:
    """Return the MB that a process of its own needed at most for each, above what it had before."""
    words = [word for way, updates in asked for word in (way, str(updates))]
    run = subprocess.run(  # noqa: S603 - our own program, no shell
        [sys.executable, "-m", _COHORT, str(parameters), *words],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(1),
    )
    return [float(value) for value in json.loads(run.stdout.strip().splitlines()[-1])]
